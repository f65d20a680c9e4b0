/* A thread pool of one caller and `workers` helpers, without a libc: the helpers are threads that somebody else starts
 * and that enter pool_work.  Tasks are claimed one by one from a counter.  Waiting spins a little, then sleeps on a
 * Linux futex. */
#include <stddef.h>
#include <stdint.h>

#define PUBLIC __attribute__((visibility("default")))
#define SPIN 4000 /* some 20 to 100 microseconds, the distance between two parallel loops of one run */

typedef void (*task_function)(void *argument, int32_t index);

typedef struct {
    int32_t generation; /* counts jobs; helpers sleep on it */
    int32_t next;       /* the next task to claim */
    int32_t busy;       /* helpers that have not finished this job; the caller sleeps on it */
    int32_t count;
    int32_t workers;
    int32_t stop;
    task_function task;
    void *argument;
} pool;

enum { FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129 };

static long futex(int32_t *word, int operation, int32_t value) {
#if defined(__x86_64__)
    register long r10 __asm__("r10") = 0;
    long result;
    __asm__ volatile("syscall" : "=a"(result)
                     : "a"(202L), "D"(word), "S"((long)operation), "d"((long)value), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = 98;
    register long x0 __asm__("x0") = (long)word;
    register long x1 __asm__("x1") = operation;
    register long x2 __asm__("x2") = value;
    register long x3 __asm__("x3") = 0;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
#endif
}

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __asm__ volatile("pause");
#else
    __asm__ volatile("yield");
#endif
}

/* Returns once *word differs from value. */
static void wait_while(int32_t *word, int32_t value) {
    for (int i = 0; i < SPIN; i++) {
        if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value) return;
        pause_briefly();
    }
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value) futex(word, FUTEX_WAIT_PRIVATE, value);
}

static void run_tasks(pool *p) {
    int32_t index;
    while ((index = __atomic_fetch_add(&p->next, 1, __ATOMIC_RELAXED)) < p->count) p->task(p->argument, index);
}

PUBLIC size_t pool_bytes(void) { return sizeof(pool); }

/* `memory` is pool_bytes() zeros. */
PUBLIC void pool_start(pool *p, int32_t workers) { p->workers = workers; }

/* The life of a helper: returns after pool_stop.  Every helper takes part in every job, if only to say it is done,
 * so that none can still claim tasks when the next job is set up. */
PUBLIC void pool_work(pool *p) {
    for (int32_t seen = 0;;) {
        wait_while(&p->generation, seen);
        seen = (int32_t)((uint32_t)seen + 1);
        if (__atomic_load_n(&p->stop, __ATOMIC_ACQUIRE)) return;
        run_tasks(p);
        if (__atomic_sub_fetch(&p->busy, 1, __ATOMIC_ACQ_REL) == 0) futex(&p->busy, FUTEX_WAKE_PRIVATE, 1);
    }
}

static void announce(pool *p) {
    __atomic_add_fetch(&p->generation, 1, __ATOMIC_RELEASE);
    futex(&p->generation, FUTEX_WAKE_PRIVATE, INT32_MAX);
}

PUBLIC void pool_parallel_for(pool *p, int32_t count, task_function task, void *argument) {
    p->task = task;
    p->argument = argument;
    p->count = count;
    __atomic_store_n(&p->next, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&p->busy, p->workers, __ATOMIC_RELAXED);
    announce(p);
    run_tasks(p);
    for (int32_t busy; (busy = __atomic_load_n(&p->busy, __ATOMIC_ACQUIRE)) != 0;) wait_while(&p->busy, busy);
}

PUBLIC void pool_stop(pool *p) {
    __atomic_store_n(&p->stop, 1, __ATOMIC_RELEASE);
    announce(p);
}
