/* A thread pool of one caller and some helpers, without a libc: the helpers are threads that somebody else starts and
 * that enter pool_work.  Tasks are claimed one by one, and the caller waits only for tasks that were claimed: a helper
 * that sleeps, or that the system runs elsewhere, delays nobody.  Waiting spins a little, then sleeps on a Linux futex. */
#include <stddef.h>
#include <stdint.h>

#define PUBLIC __attribute__((visibility("default")))
#define SPIN 4000 /* some 20 to 100 microseconds, the distance between two parallel loops of one run */

typedef void (*task_function)(void *argument, int32_t index);

/* The job's number and how many of its tasks are unclaimed, changed as one word: whoever lowers the second while the
 * first is what it was has a task of the job whose fields it read, and that job cannot end before the task does. */
typedef union {
    uint64_t word;
    struct {
        uint32_t unclaimed;
        int32_t job; /* helpers sleep on it */
    };
} ticket;

typedef struct {
    _Alignas(64) ticket open;
    int32_t count;
    task_function task;
    void *argument;
    int32_t stop;
    _Alignas(64) int32_t unfinished; /* tasks of the job; the caller sleeps on it */
    int32_t caller_sleeps;
    _Alignas(64) int32_t sleepers; /* helpers that sleep or are about to */
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

/* Returns once *word differs from value; `sleepers` counts who needs to be woken. */
static void wait_while(int32_t *word, int32_t value, int32_t *sleepers) {
    for (int i = 0; i < SPIN; i++) {
        if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value) return;
        pause_briefly();
    }
    __atomic_add_fetch(sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == value) futex(word, FUTEX_WAIT_PRIVATE, value);
    __atomic_sub_fetch(sleepers, 1, __ATOMIC_SEQ_CST);
}

static void wake(int32_t *word, int32_t *sleepers) {
    if (__atomic_load_n(sleepers, __ATOMIC_SEQ_CST)) futex(word, FUTEX_WAKE_PRIVATE, INT32_MAX);
}

/* Claims and runs tasks of whatever job is open until none is left; returns that job's number. */
static int32_t run_tasks(pool *p) {
    ticket seen = {.word = __atomic_load_n(&p->open.word, __ATOMIC_ACQUIRE)};
    while (seen.unclaimed) {
        task_function task = __atomic_load_n(&p->task, __ATOMIC_RELAXED);
        void *argument = __atomic_load_n(&p->argument, __ATOMIC_RELAXED);
        int32_t index = __atomic_load_n(&p->count, __ATOMIC_RELAXED) - (int32_t)seen.unclaimed;
        ticket claimed = seen;
        claimed.unclaimed--;
        if (!__atomic_compare_exchange_n(&p->open.word, &seen.word, claimed.word, 0, __ATOMIC_ACQ_REL,
                                         __ATOMIC_ACQUIRE))
            continue;
        task(argument, index);
        if (__atomic_sub_fetch(&p->unfinished, 1, __ATOMIC_SEQ_CST) == 0) wake(&p->unfinished, &p->caller_sleeps);
        seen.word = __atomic_load_n(&p->open.word, __ATOMIC_ACQUIRE);
    }
    return seen.job;
}

PUBLIC size_t pool_bytes(void) { return sizeof(pool); }

/* The life of a helper: returns after pool_stop.  The pool's memory, aligned to 64 bytes, begins as zeros. */
PUBLIC void pool_work(pool *p) {
    while (!__atomic_load_n(&p->stop, __ATOMIC_ACQUIRE)) wait_while(&p->open.job, run_tasks(p), &p->sleepers);
}

static void announce(pool *p, uint32_t tasks) {
    ticket next = {.word = __atomic_load_n(&p->open.word, __ATOMIC_RELAXED)};
    next.job = (int32_t)((uint32_t)next.job + 1);
    next.unclaimed = tasks;
    __atomic_store_n(&p->open.word, next.word, __ATOMIC_SEQ_CST);
    wake(&p->open.job, &p->sleepers);
}

/* All tasks of earlier jobs are claimed and finished here, so no helper reads these fields to any effect. */
PUBLIC void pool_parallel_for(pool *p, int32_t count, task_function task, void *argument) {
    if (count < 1) return;
    __atomic_store_n(&p->task, task, __ATOMIC_RELAXED);
    __atomic_store_n(&p->argument, argument, __ATOMIC_RELAXED);
    __atomic_store_n(&p->count, count, __ATOMIC_RELAXED);
    __atomic_store_n(&p->unfinished, count, __ATOMIC_RELAXED);
    announce(p, (uint32_t)count);
    run_tasks(p);
    for (int32_t left; (left = __atomic_load_n(&p->unfinished, __ATOMIC_ACQUIRE)) != 0;)
        wait_while(&p->unfinished, left, &p->caller_sleeps);
}

PUBLIC void pool_stop(pool *p) {
    __atomic_store_n(&p->stop, 1, __ATOMIC_SEQ_CST);
    announce(p, 0);
}
