// A pool that spins: a decode step has hundreds of stages of a few microseconds each, and waking
// a sleeping thread takes longer than a stage.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define relax() _mm_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() sched_yield()
#endif

#define MAX_THREADS 64
#define SPINS 40000   // about a millisecond: the pause between two tokens is shorter
#define YIELD_AFTER 4000  // a core that somebody else uses must not be spun on

typedef void (*Job)(void *argument, int thread, int threads);

static struct {
  int threads, sleeping;
  Job job;
  void *argument;
  atomic_uint generation, arrived, phase, busy;
  atomic_bool ending;
  pthread_t handles[MAX_THREADS];
  pthread_mutex_t lock, turn;
  pthread_cond_t wake;
} pool = {.threads = 1, .lock = PTHREAD_MUTEX_INITIALIZER, .turn = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

static inline void spin(int *count) {
  relax();
  if (++*count > YIELD_AFTER) sched_yield();
}

// The weights that a thread will read next. Memory must not rest while it computes or waits.
typedef struct { _Alignas(64) const char *at, *end; } Ahead;
static Ahead ahead[MAX_THREADS];

static inline __attribute__((always_inline)) void fetch(Ahead *next, int lines) {
  if (next->at >= next->end) return;
  for (int i = 0; i < lines; i++) __builtin_prefetch(next->at + 64 * i, 0, 2);
  next->at += 64 * lines;
}

// Waits until all threads of the running job have come here.
static inline void barrier(int thread, int threads) {
  if (threads == 1) return;
  unsigned phase = atomic_load_explicit(&pool.phase, memory_order_acquire);
  if (atomic_fetch_add(&pool.arrived, 1) + 1 == (unsigned)threads) {
    atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&pool.phase, phase + 1, memory_order_release);
    return;
  }
  int count = 0;
  while (atomic_load_explicit(&pool.phase, memory_order_acquire) == phase) {
    fetch(&ahead[thread], 2);
    spin(&count);
  }
}

static void *worker(void *index) {
  int thread = (int)(size_t)index;
  unsigned seen = 0;
  for (;;) {
    int count = 0;
    while (atomic_load_explicit(&pool.generation, memory_order_acquire) == seen) {
      if (++count < SPINS) {
        relax();
        continue;
      }
      pthread_mutex_lock(&pool.lock);
      pool.sleeping++;
      while (atomic_load(&pool.generation) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
      pool.sleeping--;
      pthread_mutex_unlock(&pool.lock);
    }
    seen = atomic_load(&pool.generation);
    if (atomic_load(&pool.ending)) return NULL;
    pool.job(pool.argument, thread, pool.threads);
    atomic_fetch_sub_explicit(&pool.busy, 1, memory_order_release);
  }
}

static void start(Job job, void *argument) {
  pool.job = job;
  pool.argument = argument;
  atomic_store(&pool.busy, pool.threads - 1);
  // Under the lock, so that a worker on its way to sleep does not miss it.
  pthread_mutex_lock(&pool.lock);
  atomic_fetch_add_explicit(&pool.generation, 1, memory_order_release);
  if (pool.sleeping) pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.lock);
}

// A forked process has no workers.
static void forget(void) {
  pool.threads = 1, pool.sleeping = 0;
  atomic_store(&pool.arrived, 0);
  atomic_store(&pool.busy, 0);
  pthread_mutex_init(&pool.lock, NULL);
  pthread_mutex_init(&pool.turn, NULL);
  pthread_cond_init(&pool.wake, NULL);
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, forget); }

// Makes the pool `threads` strong; gives how many it got.
static int resize(int threads) {
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  if (threads == pool.threads) return threads;
  if (pool.threads > 1) {
    atomic_store(&pool.ending, 1);
    start(NULL, NULL);
    for (int i = 1; i < pool.threads; i++) pthread_join(pool.handles[i], NULL);
  }
  atomic_store(&pool.ending, 0);
  atomic_store(&pool.generation, 0);
  pool.threads = 1;
  while (pool.threads < threads &&
         !pthread_create(&pool.handles[pool.threads], NULL, worker, (void *)(size_t)pool.threads))
    pool.threads++;
  return pool.threads;
}

// Runs a job on `threads` threads, this one among them. The caller holds pool.turn: one job at a
// time in the process.
static void run_all(int threads, Job job, void *argument) {
  resize(threads);
  if (pool.threads == 1) {
    job(argument, 0, 1);
    return;
  }
  start(job, argument);
  job(argument, 0, pool.threads);
  int count = 0;
  while (atomic_load_explicit(&pool.busy, memory_order_acquire)) spin(&count);
}

// The part of `count` things that a thread takes.
static inline void share(int count, int thread, int threads, int *from, int *to) {
  *from = (int)((long)count * thread / threads);
  *to = (int)((long)count * (thread + 1) / threads);
}
