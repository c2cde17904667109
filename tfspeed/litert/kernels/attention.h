// Attention over a cache that lies as the products read it.
//
// Keys: [kv_heads, capacity / 16, dim, 16], sixteen keys side by side, so that scores need no sum
// across a vector. Values: [kv_heads, capacity, dim]. Floats or halves; dim a multiple of 16. What
// is read follows how much is filled, not the capacity.
#pragma once
#include "threads.h"
#include "vectors.h"

#define TILE_ROWS 8

typedef struct {
  uint8_t *keys, *values;  // of one row of the batch and one layer
  int half, capacity, dim;
} Cache;

INLINE v16 load_cached(const uint8_t *p, size_t index, int half) {
  return half ? load_half((const uint16_t *)p + index) : load16((const float *)p + index);
}

static void write_slot(const Cache *c, int head, int slot, const float *key, const float *value) {
  size_t group = ((size_t)head * (c->capacity / LANES) + slot / LANES) * c->dim * LANES;
  size_t row = ((size_t)head * c->capacity + slot) * c->dim;
  for (int d = 0; d < c->dim; d++) {
    size_t at = group + d * LANES + slot % LANES;
    if (c->half) {
      ((uint16_t *)c->keys)[at] = half_of(key[d]);
      ((uint16_t *)c->values)[row + d] = half_of(value[d]);
    } else {
      ((float *)c->keys)[at] = key[d];
      ((float *)c->values)[row + d] = value[d];
    }
  }
}

// What a tile of query rows of one key head sees.
typedef struct {
  const float *query[TILE_ROWS];
  float *out[TILE_ROWS];
  int from[TILE_ROWS], to[TILE_ROWS];  // slots [from, to)
  float slope[TILE_ROWS];              // ALiBi: added a slot of distance; 0 without
  float softcap;                       // 0 without
  Ahead *next;                         // weights to fetch meanwhile
} Tile;

// A few groups of sixteen scores at a time: one alone would wait for itself at every step.
INLINE void scores_at(int rows, int groups, int half, const float *const *query, int dim,
                      const uint8_t *keys, size_t at, float *scores, int stride, Ahead *next) {
  v16 sum[TILE_ROWS][4];
  for (int r = 0; r < rows; r++)
    for (int g = 0; g < groups; g++) sum[r][g] = (v16){0};
  for (int d = 0; d < dim; d++) {
    if (rows < 4) fetch(next, 1);
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) {
      v16 key = load_cached(keys, at + ((size_t)g * dim + d) * LANES, half);
#pragma GCC unroll 8
      for (int r = 0; r < rows; r++) sum[r][g] += key * query[r][d];
    }
  }
  for (int r = 0; r < rows; r++)
    for (int g = 0; g < groups; g++) store16(scores + r * stride + g * LANES, sum[r][g]);
}

// scores[r, slot - first] of all slots in [first, last), first and last multiples of 16.
INLINE void scores_of(int rows, int half, const Tile *t, const Cache *c, int head, int first,
                      int last, float *scores, int stride) {
  size_t base = (size_t)head * (c->capacity / LANES) * c->dim * LANES;
  const int groups = rows >= 4 ? 2 : 4;
  int slot = first;
  for (; slot + groups * LANES <= last; slot += groups * LANES)
    scores_at(rows, groups, half, t->query, c->dim, c->keys, base + (size_t)slot * c->dim,
              scores + slot - first, stride, t->next);
  for (; slot < last; slot += LANES)
    scores_at(rows, 1, half, t->query, c->dim, c->keys, base + (size_t)slot * c->dim,
              scores + slot - first, stride, t->next);
}

// out[r] = sum over slots of weight · value, four vectors of the head at a time.
INLINE void mix(int rows, int half, const Tile *t, const Cache *c, int head, int first, int from,
                int to, const float *weights, int stride) {
  size_t base = (size_t)head * c->capacity * c->dim;
  for (int d = 0; d < c->dim; d += 4 * LANES) {
    int parts = (c->dim - d) / LANES < 4 ? (c->dim - d) / LANES : 4;
    v16 sum[TILE_ROWS][4];
    for (int r = 0; r < rows; r++)
      for (int p = 0; p < 4; p++) sum[r][p] = (v16){0};
    if (parts == 4) {
      for (int slot = from; slot < to; slot++) {
        if (rows < 4) fetch(t->next, 1);
        v16 value[4];
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++)
          value[p] = load_cached(c->values, base + (size_t)slot * c->dim + d + p * LANES, half);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
          for (int p = 0; p < 4; p++) sum[r][p] += value[p] * weights[r * stride + slot - first];
      }
    } else {
      for (int slot = from; slot < to; slot++)
        for (int p = 0; p < parts; p++) {
          v16 value = load_cached(c->values, base + (size_t)slot * c->dim + d + p * LANES, half);
          for (int r = 0; r < rows; r++) sum[r][p] += value * weights[r * stride + slot - first];
        }
    }
    for (int r = 0; r < rows; r++)
      for (int p = 0; p < parts; p++) store16(t->out[r] + d + p * LANES, sum[r][p]);
  }
}

// Turns a row of scores into weights that add up to 1; what lies outside of [from, to) becomes 0.
// `width` is a multiple of 16.
static void softmax(float *scores, int width, int from, int to, float slope, int now,
                    float softcap) {
  if (softcap > 0)
    for (int i = 0; i < width; i += LANES)
      store16(scores + i, softcap * tanh16(load16(scores + i) / softcap));
  if (slope != 0)
    for (int i = from; i < to; i++) scores[i] += slope * (i - now);
  for (int i = 0; i < from; i++) scores[i] = -INFINITY;
  for (int i = to; i < width; i++) scores[i] = -INFINITY;
  v16 most = all16(-1e30f), sum = {0};
  for (int i = 0; i < width; i += LANES) most = max16(load16(scores + i), most);
  float largest = most16(most);
  for (int i = 0; i < width; i += LANES) {
    v16 weight = exp16(load16(scores + i) - largest);
    store16(scores + i, weight);
    sum += weight;
  }
  float total = sum16(sum), inverse = total > 0 ? 1.0f / total : 0;  // padding sees nothing
  for (int i = 0; i < width; i += LANES) store16(scores + i, load16(scores + i) * inverse);
}

INLINE void attend_rows(int rows, int half, const Tile *t, const Cache *c, int head,
                        float *scores) {
  int from = t->from[0], to = t->to[0];
  for (int r = 1; r < rows; r++) {
    if (t->from[r] < from) from = t->from[r];
    if (t->to[r] > to) to = t->to[r];
  }
  int first = from / LANES * LANES, last = (to + LANES - 1) / LANES * LANES;
  int stride = c->capacity + 2 * LANES;  // rows a power of two apart would share a cache set
  scores_of(rows, half, t, c, head, first, last, scores, stride);
  for (int r = 0; r < rows; r++)
    softmax(scores + r * stride, last - first, t->from[r] - first, t->to[r] - first, t->slope[r],
            t->to[r] - 1 - first, t->softcap);
  mix(rows, half, t, c, head, first, from, to, scores, stride);
}

#define ATTEND(rows)                                                                   \
  static void attend_##rows(const Tile *t, const Cache *c, int head, float *scores) {  \
    if (c->half) attend_rows(rows, 1, t, c, head, scores);                             \
    else attend_rows(rows, 0, t, c, head, scores);                                     \
  }
ATTEND(1)
ATTEND(2)
ATTEND(3)
ATTEND(4)
ATTEND(8)

// `rows` query rows of one key head, at most eight. scores: float [8, capacity + 32].
static void attend(int rows, const Tile *t, const Cache *c, int head, float *scores) {
  if (rows == 8) attend_8(t, c, head, scores);
  else if (rows >= 4) attend_4(t, c, head, scores);
  else if (rows == 3) attend_3(t, c, head, scores);
  else if (rows == 2) attend_2(t, c, head, scores);
  else attend_1(t, c, head, scores);
  int done = rows == 8 ? 8 : rows >= 4 ? 4 : rows;
  if (done == rows) return;
  Tile rest = *t;
  for (int r = done; r < rows; r++) {
    rest.query[r - done] = t->query[r];
    rest.out[r - done] = t->out[r];
    rest.from[r - done] = t->from[r];
    rest.to[r - done] = t->to[r];
    rest.slope[r - done] = t->slope[r];
  }
  attend(rows - done, &rest, c, head, scores);
}
