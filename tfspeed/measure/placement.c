/* Where the cores of this process lie, as seen from what they do. See placement.py. */
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

enum { TURNS = 100, BURSTS = 10, PATIENCE = 1 << 22 };  /* polls, some milliseconds */

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int wait_for(_Atomic int64_t *line, int64_t value) {
  for (long polls = 0; atomic_load_explicit(line, memory_order_acquire) != value; polls++)
    if (polls > PATIENCE) return 0;  /* the other thread does not run */
  return 1;
}

/* Seconds that a line takes to the other thread, the least of some bursts; 0: it did not come.
 * Called by two threads at once, with a line of zeros: `second` is 0 in one and 1 in the other. */
double tfspeed_turn(_Atomic int64_t *line, int second) {
  double least = 1e9;
  int64_t value = second;
  for (int burst = 0; burst < BURSTS; burst++) {
    double start = now();
    for (int turn = 0; turn < TURNS; turn++, value += 2) {
      if (!wait_for(line, value)) return 0;
      atomic_store_explicit(line, value + 1, memory_order_release);
    }
    double spent = (now() - start) / (2 * TURNS);
    if (spent < least) least = spent;
  }
  return least;
}

/* Multiplications and additions of vectors a second, of this thread for so many seconds: eight
 * chains, as many as a core works on at once. Begins when `threads` of them have come, each of which
 * adds one to a line of zeros; 0: they did not come. */
double tfspeed_multiply(_Atomic int64_t *line, int threads, double seconds) {
  atomic_fetch_add(line, 1);
  if (!wait_for(line, threads)) return 0;
  typedef float vector __attribute__((vector_size(64)));
  enum { CHAINS = 8, TIMES = 4000 };
  vector factor, more, a, b, c, d, e, f, g, h;
  for (int k = 0; k < 16; k++) {
    factor[k] = 0.999f, more[k] = 1e-4f;
    /* Each from elsewhere, or all of them are one. */
    a[k] = (float)k, b[k] = a[k] + 1, c[k] = a[k] + 2, d[k] = a[k] + 3;
    e[k] = a[k] + 4, f[k] = a[k] + 5, g[k] = a[k] + 6, h[k] = a[k] + 7;
  }
  double start = now(), end;
  long done = 0;
  do {
    for (int time = 0; time < TIMES; time++) {
      a = a * factor + more, b = b * factor + more, c = c * factor + more, d = d * factor + more;
      e = e * factor + more, f = f * factor + more, g = g * factor + more, h = h * factor + more;
    }
    done += CHAINS * TIMES;
    end = now();
  } while (end - start < seconds);
  vector all = a + b + c + d + e + f + g + h;
  volatile float kept = all[0];
  (void)kept;
  return (double)done / (end - start);
}
