/* Runs one artifact under qemu-aarch64: reads the model's image once, then inputs from standard input and writes status
 * and outputs to standard output, until the input ends.  No libc; see qemu_engine.py for the other side. */
#include <stddef.h>
#include <stdint.h>

enum { READ = 63, WRITE = 64, EXIT = 93, MMAP = 222 };
enum { PROT_READ_WRITE_EXEC = 7, MAP_PRIVATE_ANONYMOUS = 0x22 };

static long system_call(long number, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

static void leave(int code) {
    for (;;) system_call(EXIT, code, 0, 0, 0, 0, 0);
}

/* Moves all `count` bytes; leaves at the end of the input. */
static void transfer(long call, long file, void *bytes, uint64_t count) {
    for (uint64_t done = 0; done < count;) {
        long moved = system_call(call, file, (long)((uint8_t *)bytes + done), (long)(count - done), 0, 0, 0);
        if (moved <= 0) leave(moved < 0);
        done += (uint64_t)moved;
    }
}

static void *allocate(uint64_t count) {
    long address = system_call(MMAP, 0, (long)(count + 1), PROT_READ_WRITE_EXEC, MAP_PRIVATE_ANONYMOUS, -1, 0);
    if (address < 0 && address > -4096) leave(2);
    return (void *)address;
}

void _start(void) {
    struct { uint64_t image_bytes, relocations, run, arena_bytes, inputs, outputs; } head;
    transfer(READ, 0, &head, sizeof head);
    uint64_t tensors = head.inputs + head.outputs;
    uint64_t *sizes = allocate(8 * tensors);
    transfer(READ, 0, sizes, 8 * tensors);
    uint64_t *relocations = allocate(16 * head.relocations); /* pairs of offset and value */
    transfer(READ, 0, relocations, 16 * head.relocations);
    uint8_t *image = allocate(head.image_bytes);
    transfer(READ, 0, image, head.image_bytes);
    for (uint64_t i = 0; i < head.relocations; i++)
        *(uint64_t *)(image + relocations[2 * i]) = (uint64_t)image + relocations[2 * i + 1];
    void **buffers = allocate(8 * tensors);
    for (uint64_t i = 0; i < tensors; i++) buffers[i] = allocate(sizes[i]);
    void *arena = allocate(head.arena_bytes);
    int (*run)(void **, void **, void *) = (int (*)(void **, void **, void *))(void *)(image + head.run);
    int32_t status = 0;
    transfer(WRITE, 1, &status, sizeof status); /* ready */
    for (;;) {
        for (uint64_t i = 0; i < head.inputs; i++) transfer(READ, 0, buffers[i], sizes[i]);
        status = run(buffers, buffers + head.inputs, arena);
        transfer(WRITE, 1, &status, sizeof status);
        for (uint64_t i = head.inputs; i < tensors; i++) transfer(WRITE, 1, buffers[i], sizes[i]);
    }
}
