// Products of activations with weight matrices that lie in panels of sixteen rows.
//
// A panel holds sixteen outputs side by side, so that no sum runs across a vector and one load of
// weights serves many tokens. Integer weights meet activations in eight bits, one scale for every
// 32 values of a token: finer than a scale a token, and exact sums in between.
#pragma once
#include "threads.h"
#include "vectors.h"

#define BLOCK 32
enum Kind { FLOAT32, FLOAT16, INT8, INT4 };

// Where a matrix lies in its blob, in bytes; bias is -1 where there is none.
typedef struct {
  int32_t kind, rows, cols, group;  // group: columns that share a scale
  int32_t values, scales, bias;
} Matrix;

// Activations [count, width] in both forms; columns up to a multiple of 32 are zero.
typedef struct {
  float *x;
  int8_t *q;
  float *scale;    // [count, width / 32]
  int32_t *offset; // [count, width / 32]: -8 · the sum of a block
  int width;
} Rows;

INLINE int up_to(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

// Rounds a row to eight bits, block by block.
static void quantize(Rows *rows, int m, Ahead *next) {
  const float *x = rows->x + (size_t)m * rows->width;
  int8_t *q = rows->q + (size_t)m * rows->width;
  int blocks = rows->width / BLOCK;
  for (int b = 0; b < blocks; b++, x += BLOCK, q += BLOCK) {
    fetch(next, 2);
    v16 low = load16(x), high = load16(x + LANES);
    float most = most16(max16(abs16(low), abs16(high)));
    float inverse = most > 0 ? 127.0f / most : 0;
    v16i a = round16(low * inverse), c = round16(high * inverse), sum = a + c;
    *(v16c *)q = __builtin_convertvector(a, v16c);
    *(v16c *)(q + LANES) = __builtin_convertvector(c, v16c);
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total += sum[i];
    rows->scale[m * blocks + b] = most / 127.0f;
    rows->offset[m * blocks + b] = -8 * total;
  }
}

#ifdef SIGNED_WEIGHTS
#define START(shift, offset) all16i(0 * (offset))
#define SIGNED8(w) ((w) ^ 128)
#define SIGNED4(w) ((w) - 8)
#else
#define START(shift, offset) (all16i(offset) << (shift))  // takes out what the zero adds
#define SIGNED8(w) (w)
#define SIGNED4(w) (w)
#endif

// Bytes. Several tokens keep the processor busy for so long that it does not look far ahead itself.
#define SOON 8192

// A panel of integers by `count` tokens from row m on.
INLINE void integer_tile(int kind, int count, const Matrix *w, const uint8_t *blob, int panel,
                         const Rows *in, int m, v16 *out) {
  int blocks = in->width / BLOCK, groups = up_to(w->cols, w->group) / w->group;
  int per_group = up_to(w->group, BLOCK) / BLOCK;
  size_t block_bytes = kind == INT8 ? LANES * BLOCK : LANES * BLOCK / 2;
  const uint8_t *values = blob + w->values + (size_t)panel * blocks * block_bytes;
  const uint8_t *scales = blob + w->scales + (size_t)panel * groups * LANES * (kind == INT8 ? 4 : 2);
  const int8_t *q = in->q + (size_t)m * in->width;
  const float *scale = in->scale + (size_t)m * blocks;
  const int32_t *offset = in->offset + (size_t)m * blocks;
  for (int i = 0; i < count; i++) out[i] = (v16){0};
  for (int b = 0, g = 0; g < groups; g++) {
    v16 part[12];
    for (int i = 0; i < count; i++) part[i] = (v16){0};
    for (int end = b + per_group; b < end && b < blocks; b++, values += block_bytes) {
      v16i sum[12];
#pragma GCC unroll 12
      for (int i = 0; i < count; i++)
        sum[i] = START(kind == INT8 ? 4 : 0, offset[(size_t)i * blocks + b]);
      if (kind == INT8) {
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
          __builtin_prefetch(values + 64 * k + SOON, 0, 2);
          v64 four = SIGNED8(*(const v64 *)(values + 64 * k));
#pragma GCC unroll 12
          for (int i = 0; i < count; i++)
            sum[i] = dot4(sum[i], four, q + (size_t)i * in->width + b * BLOCK + 4 * k);
        }
      } else {
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
          __builtin_prefetch(values + 64 * k + SOON, 0, 2);
          v64 both = *(const v64 *)(values + 64 * k);
          v64 low = SIGNED4(both & 15), high = SIGNED4((both >> 4) & 15);
#pragma GCC unroll 12
          for (int i = 0; i < count; i++) {
            const int8_t *x = q + (size_t)i * in->width + b * BLOCK + 8 * k;
            sum[i] = dot4(dot4(sum[i], low, x), high, x + 4);
          }
        }
      }
#pragma GCC unroll 12
      for (int i = 0; i < count; i++)
        part[i] += float16(sum[i]) * scale[(size_t)i * blocks + b];
    }
    v16 shared = kind == INT8 ? load16((const float *)scales + g * LANES)
                              : load_half((const uint16_t *)scales + g * LANES);
    for (int i = 0; i < count; i++) out[i] += part[i] * shared;
  }
}

// One or two panels of floats or halves by `count` tokens: out[panels, count]. A sum runs over the
// columns in their order whatever the tile, so that what a token gets does not depend on how many
// there are; the second panel hides the latency.
INLINE void float_tile(int kind, int panels, int count, const Matrix *w, const uint8_t *blob,
                       int panel, const Rows *in, int m, v16 *out) {
  size_t size = kind == FLOAT32 ? 4 : 2, apart = (size_t)w->cols * LANES;
  const uint8_t *values = blob + w->values + panel * apart * size;
  const float *x = in->x + (size_t)m * in->width;
  v16 sum[24];
#pragma GCC unroll 24
  for (int i = 0; i < panels * count; i++) sum[i] = (v16){0};
  for (int k = 0; k < w->cols; k++)
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++) {
      size_t at = p * apart + (size_t)k * LANES;
      __builtin_prefetch(values + at * size + SOON, 0, 2);
      v16 column = kind == FLOAT32 ? load16((const float *)values + at)
                                   : load_half((const uint16_t *)values + at);
#pragma GCC unroll 12
      for (int i = 0; i < count; i++)
        sum[p * count + i] += column * x[(size_t)i * in->width + k];
    }
#pragma GCC unroll 24
  for (int i = 0; i < panels * count; i++) out[i] = sum[i];
}

#define TILE(count)                                                                    \
  static void tile_##count(int panels, const Matrix *w, const uint8_t *blob, int panel, \
                           const Rows *in, int m, v16 *out) {                          \
    if (w->kind == INT8) integer_tile(INT8, count, w, blob, panel, in, m, out);        \
    else if (w->kind == INT4) integer_tile(INT4, count, w, blob, panel, in, m, out);   \
    else if (w->kind == FLOAT32 && panels == 2)                                        \
      float_tile(FLOAT32, 2, count, w, blob, panel, in, m, out);                       \
    else if (w->kind == FLOAT32) float_tile(FLOAT32, 1, count, w, blob, panel, in, m, out); \
    else if (panels == 2) float_tile(FLOAT16, 2, count, w, blob, panel, in, m, out);   \
    else float_tile(FLOAT16, 1, count, w, blob, panel, in, m, out);                    \
  }
TILE(1)
TILE(2)
TILE(4)
TILE(8)
TILE(12)
#if defined(__AVX512F__)
#define WIDEST 12  // as many as thirty-two registers hold
#else
#define WIDEST 2
#endif

#define AHEAD (256 << 10)  // bytes: what the second cache holds besides activations

// Says what this thread's share of a product begins with.
static void look_ahead(const Matrix *w, const uint8_t *blob, int thread, int threads) {
  static const int bits[] = {32, 16, 8, 4};
  int from, to, columns = w->kind <= FLOAT16 ? w->cols : up_to(w->cols, BLOCK);
  size_t panel = (size_t)columns * LANES * bits[w->kind] / 8;
  share(up_to(w->rows, LANES) / LANES, thread, threads, &from, &to);
  const char *at = (const char *)blob + w->values + from * panel;
  size_t size = (to - from) * panel;
  ahead[thread].at = at;
  ahead[thread].end = at + (size < AHEAD ? size : AHEAD);
}

// Adds the bias to a tile of one panel, and puts it where it belongs.
INLINE void put(const Matrix *w, const uint8_t *blob, int panel, int count, const v16 *tile,
                float *out, size_t stride, int add, int exact) {
  v16 bias = {0};
  int width = w->rows - panel * LANES < LANES ? w->rows - panel * LANES : LANES;
  if (w->bias >= 0) bias = load16((const float *)(blob + w->bias) + panel * LANES);
  for (int i = 0; i < count; i++) {
    float *to_row = out + i * stride + panel * LANES;
    v16 value = tile[i] + bias;
    if (add) value += load16(to_row);
    if (exact) memcpy(to_row, &value, width * sizeof(float));
    else store16(to_row, value);
  }
}

// out[m, rows] = (add ? out : 0) + in[m, cols] @ w.T + bias, for one thread's share of panels.
// Rows of `out` are `stride` apart and hold a whole number of panels unless `exact`.
static void product(const Matrix *w, const uint8_t *blob, const Rows *in, int count, float *out,
                    size_t stride, int add, int exact, int thread, int threads) {
  int from, to, panels;
  share(up_to(w->rows, LANES) / LANES, thread, threads, &from, &to);
  for (int panel = from; panel < to; panel += panels) {
    v16 tile[24];
    panels = w->kind <= FLOAT16 && to - panel >= 2 ? 2 : 1;
    for (int m = 0, done; m < count; m += done) {
      int left = count - m;
      if (left >= 12 && WIDEST >= 12) tile_12(panels, w, blob, panel, in, m, tile), done = 12;
      else if (left >= 8 && WIDEST >= 8) tile_8(panels, w, blob, panel, in, m, tile), done = 8;
      else if (left >= 4 && WIDEST >= 4) tile_4(panels, w, blob, panel, in, m, tile), done = 4;
      else if (left >= 2) tile_2(panels, w, blob, panel, in, m, tile), done = 2;
      else tile_1(panels, w, blob, panel, in, m, tile), done = 1;
      for (int p = 0; p < panels; p++)
        put(w, blob, panel + p, done, tile + p * done, out + m * stride, stride, add, exact);
    }
  }
}

// Row `row` of a matrix as floats: an embedding that was looked up.
static void look_up(const Matrix *w, const uint8_t *blob, int row, float *out) {
  int panel = row / LANES, lane = row % LANES, blocks = up_to(w->cols, BLOCK) / BLOCK;
  int groups = up_to(w->cols, w->group) / w->group;
  const uint8_t *values = blob + w->values;
  if (w->kind == FLOAT32 || w->kind == FLOAT16) {
    for (int k = 0; k < w->cols; k++) {
      size_t at = ((size_t)panel * w->cols + k) * LANES + lane;
      _Float16 half;
      if (w->kind == FLOAT32) out[k] = ((const float *)values)[at];
      else memcpy(&half, values + 2 * at, 2), out[k] = (float)half;
    }
    return;
  }
  for (int k = 0; k < w->cols; k++) {
    int place = k % BLOCK, value;
    size_t block = (size_t)panel * blocks + k / BLOCK, group = (size_t)panel * groups + k / w->group;
    if (w->kind == INT8) {
      value = values[block * 512 + place / 4 * 64 + lane * 4 + place % 4] - 128;
      out[k] = value * ((const float *)(blob + w->scales))[group * LANES + lane];
    } else {
      uint8_t pair = values[block * 256 + place / 8 * 64 + lane * 4 + place % 4];
      _Float16 scale;
      memcpy(&scale, blob + w->scales + 2 * (group * LANES + lane), 2);
      out[k] = ((place % 8 < 4 ? pair & 15 : pair >> 4) - 8) * (float)scale;
    }
  }
}
