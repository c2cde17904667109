// Sixteen numbers at a time, in the compiler's own vector types: one source for AVX-512, AVX2 and
// NEON. Intrinsics only where a language has no word for it: dot products of bytes, half floats.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t v16i __attribute__((vector_size(64), aligned(4), may_alias));
typedef int8_t v16c __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint8_t v64 __attribute__((vector_size(64), aligned(1), may_alias));

INLINE v16 load16(const float *p) { return *(const v16 *)p; }
INLINE void store16(float *p, v16 x) { *(v16 *)p = x; }
INLINE v16 all16(float x) { return (v16){0} + x; }
INLINE v16i all16i(int32_t x) { return (v16i){0} + x; }
INLINE v16 float16(v16i x) { return __builtin_convertvector(x, v16); }

// Sixteen halves as floats.
INLINE v16 load_half(const uint16_t *p) {
#if defined(__AVX512F__)
  return (v16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
  union { v16 all; __m256 half[2]; } x;
  x.half[0] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
  x.half[1] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1));
  return x.all;
#else
  v16 x;
  for (int i = 0; i < LANES; i++) {
    _Float16 h;
    memcpy(&h, p + i, 2);
    x[i] = (float)h;
  }
  return x;
#endif
}

INLINE uint16_t half_of(float x) {
  _Float16 h = (_Float16)x;
  uint16_t bits;
  memcpy(&bits, &h, 2);
  return bits;
}

// sum[l] += w[4l..4l+3] · x[0..3] for all sixteen lanes; w holds 0..255, of which `zero` is 0.
#if defined(__AVX512VNNI__)
INLINE v16i dot4(v16i sum, v64 w, const int8_t *x) {
  int32_t four;
  memcpy(&four, x, 4);
  return (v16i)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(four));
}
#elif defined(__AVX2__)
INLINE v16i dot4(v16i sum, v64 w, const int8_t *x) {
  // maddubs saturates at 16 bits: the weight as a signed value with the sign of x, times |x|.
  union { v64 w; v16i i; __m256i half[2]; } a = {.w = w}, b = {.i = sum};
  int32_t four;
  memcpy(&four, x, 4);
  __m256i xs = _mm256_set1_epi32(four), size = _mm256_abs_epi8(xs), one = _mm256_set1_epi16(1);
  for (int i = 0; i < 2; i++) {
    __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(a.half[i], xs));
    b.half[i] = _mm256_add_epi32(b.half[i], _mm256_madd_epi16(pairs, one));
  }
  return b.i;
}
#define SIGNED_WEIGHTS
#else
INLINE v16i dot4(v16i sum, v64 w, const int8_t *x) {
  for (int l = 0; l < LANES; l++)
    for (int i = 0; i < 4; i++) sum[l] += (int8_t)w[4 * l + i] * x[i];
  return sum;
}
#define SIGNED_WEIGHTS
#endif

INLINE v16 select16(v16i mask, v16 yes, v16 no) {
  return (v16)(((v16i)yes & mask) | ((v16i)no & ~mask));
}
INLINE v16 max16(v16 a, v16 b) { return select16(a > b, a, b); }
INLINE v16 min16(v16 a, v16 b) { return select16(a < b, a, b); }
INLINE v16 abs16(v16 x) { return (v16)((v16i)x & 0x7fffffff); }

// To the nearest integer, of two the even one, for |x| < 2^22: what is added leaves no fraction.
INLINE v16i round16(v16 x) { return (v16i)(x + 12582912.0f) - 0x4b400000; }

// Sums are taken in an order that is written here, never in one that the compiler chooses: a token
// gets the same numbers whether it is read alone or with others.
INLINE float sum16(v16 x) {
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}

INLINE float most16(v16 x) {
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) x[i] = x[i + half] > x[i] ? x[i + half] : x[i];
  return x[0];
}

INLINE float sum_of(const float *x, int n) {
  v16 sum = {0};
  int i = 0;
  for (; i + LANES <= n; i += LANES) sum += load16(x + i);
  float total = sum16(sum);
  for (; i < n; i++) total += x[i];
  return total;
}

// Of the squares of what x is away from `mean`.
INLINE float squares_of(const float *x, float mean, int n) {
  v16 sum = {0};
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    v16 away = load16(x + i) - mean;
    sum += away * away;
  }
  float total = sum16(sum);
  for (; i < n; i++) total += (x[i] - mean) * (x[i] - mean);
  return total;
}

// e^x to two units in the last place; 0 below -87. (Cephes' polynomial.)
INLINE v16 exp16(v16 x) {
  v16i gone = x < -87.0f;
  x = min16(max16(x, all16(-87.0f)), all16(88.0f));
  v16i n = round16(x * 1.44269504f);
  v16 whole = float16(n), r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  v16 p = all16(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return (v16)((v16i)(p * (v16)((n + 127) << 23)) & ~gone);
}

INLINE v16 tanh16(v16 x) {
  v16 e = exp16(-2.0f * abs16(x)), size = (1.0f - e) / (1.0f + e);
  return (v16)((v16i)size | ((v16i)x & (int32_t)0x80000000));
}
