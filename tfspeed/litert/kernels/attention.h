// Attention over a cache that lies as the products read it, in blocks that a table puts in order.
//
// Keys of a block: [kv_heads, block / 16, dim, 16], sixteen keys side by side, so that scores need
// no sum across a vector. Values: [kv_heads, block, dim]. Floats or halves; block and dim multiples
// of 16. What is read follows how much is filled, not the capacity. A text that has the cache to
// itself has a single block.
#pragma once
#include "threads.h"
#include "vectors.h"

#define TILE_ROWS 8

typedef struct {
  uint8_t *keys, *values;  // of the first block of a layer
  const int32_t *table;    // of a text: slot s lies in block table[s / block]
  size_t apart;            // elements from a block to the next
  int half, block, dim;
} Cache;

INLINE v16 load_cached(const uint8_t *p, size_t index, int half) {
  return half ? load_half((const uint16_t *)p + index) : load16((const float *)p + index);
}

// Where the keys or values of a head begin in the block that holds a slot.
INLINE size_t place(const Cache *c, int head, int slot) {
  return c->table[slot / c->block] * c->apart + (size_t)head * c->block * c->dim;
}

static void write_slot(const Cache *c, int head, int slot, const float *key, const float *value) {
  size_t base = place(c, head, slot);
  slot %= c->block;
  size_t group = base + (size_t)(slot / LANES) * c->dim * LANES;
  size_t row = base + (size_t)slot * c->dim;
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
  const int groups = rows >= 4 ? 2 : 4;
  while (first < last) {  // a block after the other
    int within = first % c->block, end = c->block;
    if (end - within > last - first) end = within + last - first;
    size_t base = place(c, head, first);
    int slot = within;
    for (; slot + groups * LANES <= end; slot += groups * LANES)
      scores_at(rows, groups, half, t->query, c->dim, c->keys, base + (size_t)slot * c->dim,
                scores + slot - within, stride, t->next);
    for (; slot < end; slot += LANES)
      scores_at(rows, 1, half, t->query, c->dim, c->keys, base + (size_t)slot * c->dim,
                scores + slot - within, stride, t->next);
    first += end - within, scores += end - within;
  }
}

// out[r] = sum over slots of weight · value, four vectors of the head at a time. `weights` are
// those of slots from `from` on.
INLINE void mix(int rows, int half, const Tile *t, const Cache *c, int head, int from, int to,
                const float *weights, int stride) {
  for (int d = 0; d < c->dim; d += 4 * LANES) {
    int parts = (c->dim - d) / LANES < 4 ? (c->dim - d) / LANES : 4;
    v16 sum[TILE_ROWS][4];
    for (int r = 0; r < rows; r++)
      for (int p = 0; p < 4; p++) sum[r][p] = (v16){0};
    for (int first = from, end; first < to; first = end) {  // a block after the other
      end = (first / c->block + 1) * c->block;
      if (end > to) end = to;
      size_t at = place(c, head, first) + (size_t)(first % c->block) * c->dim + d;
      const float *weight = weights + first - from;
      if (parts == 4) {
        for (int i = 0; i < end - first; i++, at += c->dim) {
          if (rows < 4) fetch(t->next, 1);
          v16 value[4];
#pragma GCC unroll 4
          for (int p = 0; p < 4; p++) value[p] = load_cached(c->values, at + p * LANES, half);
#pragma GCC unroll 8
          for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int p = 0; p < 4; p++) sum[r][p] += value[p] * weight[r * stride + i];
        }
      } else {
        for (int i = 0; i < end - first; i++, at += c->dim)
          for (int p = 0; p < parts; p++) {
            v16 value = load_cached(c->values, at + p * LANES, half);
            for (int r = 0; r < rows; r++) sum[r][p] += value * weight[r * stride + i];
          }
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
                        float *scores, int stride) {
  int from = t->from[0], to = t->to[0];
  for (int r = 1; r < rows; r++) {
    if (t->from[r] < from) from = t->from[r];
    if (t->to[r] > to) to = t->to[r];
  }
  int first = from / LANES * LANES, last = (to + LANES - 1) / LANES * LANES;
  scores_of(rows, half, t, c, head, first, last, scores, stride);
  for (int r = 0; r < rows; r++)
    softmax(scores + r * stride, last - first, t->from[r] - first, t->to[r] - first, t->slope[r],
            t->to[r] - 1 - first, t->softcap);
  mix(rows, half, t, c, head, from, to, scores + from - first, stride);
}

#define ATTEND(rows)                                                                   \
  static void attend_##rows(const Tile *t, const Cache *c, int head, float *scores,    \
                            int stride) {                                              \
    if (c->half) attend_rows(rows, 1, t, c, head, scores, stride);                     \
    else attend_rows(rows, 0, t, c, head, scores, stride);                             \
  }
ATTEND(1)
ATTEND(2)
ATTEND(3)
ATTEND(4)
ATTEND(8)

// `rows` query rows of one key head, at most eight. scores: float [8, stride], wide enough for all
// slots that are seen.
static void attend(int rows, const Tile *t, const Cache *c, int head, float *scores, int stride) {
  if (rows == 8) attend_8(t, c, head, scores, stride);
  else if (rows >= 4) attend_4(t, c, head, scores, stride);
  else if (rows == 3) attend_3(t, c, head, scores, stride);
  else if (rows == 2) attend_2(t, c, head, scores, stride);
  else attend_1(t, c, head, scores, stride);
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
  attend(rows - done, &rest, c, head, scores, stride);
}
