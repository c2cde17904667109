// A whole decoder as one LiteRT operator: tokens in, cache in place, logits out.
//
// A step through a graph of some forty small operators a layer spends more time between operators
// than in reading weights. Here a layer is six stages, all threads stay awake from the first to
// the last, and activations stay in the cache of the processor.
//
// A step reads pieces of several texts, of any lengths: whole prompts of one length, one token of
// each of thirty texts, or both. Every weight is read once for all of them.
//
// A plan may hold some of a decoder's layers, a stage of a pipeline: then hidden states, float
// [tokens, hidden], stand in place of tokens, of logits, or of both.
//
// Inputs: tokens int32, of all texts behind each other; control int32: eight fields (see Step),
// then a Text and its table for each; cache [layers, 2, blocks, kv_heads, block, dim]; plan; shared
// blob; a blob a layer.
// Outputs: the cache, the same memory; logits [tokens after which some are wanted, vocabulary].
#include <time.h>

#include "attention.h"
#include "matrix.h"
#include "plan.h"
#include "threads.h"

enum { TAKES_HIDDEN = 1, GIVES_HIDDEN = 2 };
enum { EMBED, PREPARE, QUERY_KEY_VALUE, ROTATE, ATTEND, OUT, GATE_UP, DOWN, HEAD, STAGES };

typedef struct {
  int32_t slot, count;  // of the first of its tokens here, how many they are
  int32_t start;        // the first slot that it uses: its position 0
  int32_t last;         // position of the last token of what it is read for
  int32_t wanted;       // after how many of its last tokens here logits are
  int32_t table[];
} Text;

typedef struct {
  const Plan *plan;
  const Layer *layers;
  const int32_t *tokens, *control;
  const uint8_t *shared, *const *blobs;
  uint8_t *cache;
  float *logits;
  int texts, rows, timed, block, blocks, width, longest;  // control's fields; width: of a table
  int part;  // the last one: TAKES_HIDDEN, GIVES_HIDDEN
  int outputs;
  // Scratch.
  float *x, *fused, *turned, *mixed, *gate, *up, *aside[2], *scores, *thin;
  float *angles[2];  // [rows, 2, rotary / 2]: cos, sin
  int32_t *owner, *first, *wanted;  // text of a row; first row of a text; rows that give logits
  int stride;                       // of a row of scores
  Rows shares, own[MAX_THREADS];
  double *seconds;
  double last;
} Step;

static void *memory[32];
static size_t sizes[32];

// Scratch lives as long as the process: one job runs at a time.
static void *scratch(int slot, size_t bytes) {
  bytes = (bytes + 256 + 63) & ~(size_t)63;
  if (sizes[slot] < bytes) {
    free(memory[slot]);
    memory[slot] = aligned_alloc(64, bytes);
    sizes[slot] = memory[slot] ? bytes : 0;
    if (memory[slot]) memset(memory[slot], 0, bytes);
  }
  return memory[slot];
}

static const Text *text_of(const Step *s, int i) {
  return (const Text *)(s->control + 8 + (size_t)i * (sizeof(Text) / sizeof(int32_t) + s->width));
}

static void tick(Step *s, int thread, int stage) {
  if (!s->timed || thread) return;
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  double seconds = now.tv_sec + now.tv_nsec * 1e-9;
  if (stage >= 0) s->seconds[stage] += seconds - s->last;
  s->last = seconds;
}

static void norm(const Plan *p, const float *x, const float *scale, float *out) {
  int n = p->hidden;
  float mean = p->layer_norm ? sum_of(x, n) / n : 0;
  float inverse = 1.0f / sqrtf(squares_of(x, mean, n) / n + p->epsilon);
  const float *bias = scale + n;
  for (int i = 0; i < n; i++) out[i] = (x[i] - mean) * inverse * scale[i] + bias[i];
}

// Makes `in` ready for a product: row i of it from row of(i) of what `fill` reads.
typedef void (*Fill)(const Step *, const void *, int, float *);

// A single row is made by every thread for itself: cheaper than waiting for one. Several are shared
// out; all threads must have left the last product, which reads them.
static const Rows *prepare(Step *s, Fill fill, const void *what, int rows, int width, int thread,
                           int threads) {
  Rows *in = rows == 1 ? &s->own[thread] : &s->shares;
  in->width = up_to(width, BLOCK);
  int from = 0, to = rows;
  if (rows > 1) share(rows, thread, threads, &from, &to);
  for (int m = from; m < to; m++) {
    float *row = in->x + (size_t)m * in->width;
    fill(s, what, m, row);
    for (int i = width; i < in->width; i++) row[i] = 0;
    quantize(in, m, &ahead[thread]);
  }
  if (rows > 1) barrier(thread, threads);
  tick(s, thread, PREPARE);
  return in;
}

static void fill_normed(const Step *s, const void *scale, int m, float *out) {
  norm(s->plan, s->x + (size_t)m * up_to(s->plan->hidden, LANES), scale, out);
}

static void fill_wanted_normed(const Step *s, const void *scale, int i, float *out) {
  fill_normed(s, scale, s->wanted[i], out);
}

static void fill_mixed(const Step *s, const void *of, int m, float *out) {
  const Layer *layer = of;
  int dim = s->plan->dim, padded = up_to(dim, LANES);
  for (int h = 0; h < layer->heads; h++)
    memcpy(out + h * dim, s->mixed + ((size_t)m * layer->heads + h) * padded,
           dim * sizeof(float));
}

static void fill_activated(const Step *s, const void *of, int m, float *out) {
  const Layer *layer = of;
  memcpy(out, s->gate + (size_t)m * up_to(layer->mlp, LANES), layer->mlp * sizeof(float));
}

static void fill_thin(const Step *s, const void *of, int m, float *out) {
  const Matrix *first = of;
  memcpy(out, s->thin + (size_t)m * up_to(first->rows, LANES), first->rows * sizeof(float));
}

// What a product reads: what the first of two thin ones has made of `in`, or `in` itself.
static const Rows *through(Step *s, const Matrix *first, const Matrix *second, const uint8_t *blob,
                           const Rows *in, int rows, int stage, int thread, int threads) {
  if (!first->rows) return in;
  product(first, blob, in, rows, s->thin, up_to(first->rows, LANES), 0, 0, thread, threads);
  look_ahead(second, blob, thread, threads);
  barrier(thread, threads);
  tick(s, thread, stage);
  return prepare(s, fill_thin, first, rows, first->rows, thread, threads);
}

// The matrix that a product begins with.
static const Matrix *begins(const Matrix *first, const Matrix *second) {
  return first->rows ? first : second;
}

static void embed(Step *s, int thread, int threads) {
  const Plan *p = s->plan;
  int from, to, width = up_to(p->hidden, LANES), half = p->rotary / 2;
  share(s->rows, thread, threads, &from, &to);
  for (int m = from; m < to; m++) {
    const Text *text = text_of(s, s->owner[m]);
    int position = text->slot + m - s->first[s->owner[m]] - text->start;
    float *x = s->x + (size_t)m * width;
    if (s->part & TAKES_HIDDEN)
      memcpy(x, (const float *)s->tokens + (size_t)m * p->hidden, p->hidden * sizeof(float));
    else look_up(&p->embedding, s->shared, s->tokens[m], x);
    for (int i = p->hidden; i < width; i++) x[i] = 0;
    if (p->embedding_scale >= 0) {
      const float *scale = (const float *)(s->shared + p->embedding_scale);
      for (int i = 0; i < p->hidden; i++) x[i] *= scale[i];
    }
    if (position < 0) position = 0;  // padding
    if (p->positions == LEARNED && p->position_embedding >= 0) {
      int row = position < p->context ? position : p->context - 1;
      const float *learned =
          (const float *)(s->shared + p->position_embedding) + (size_t)row * p->hidden;
      for (int i = 0; i < p->hidden; i++) x[i] += learned[i];
    }
    for (int r = 0; r < 2 && p->positions == ROPE; r++) {
      const Rope *rope = &p->ropes[r];
      if (rope->frequencies < 0) continue;
      int stretched = rope->long_frequencies >= 0 && text->last >= rope->original;
      const float *f = (const float *)(s->shared + (stretched ? rope->long_frequencies
                                                              : rope->frequencies));
      float *angles = s->angles[r] + (size_t)m * 2 * half;
      for (int i = 0; i < half; i++) {
        float angle = (float)position * f[i];
        angles[i] = cosf(angle) * rope->factor;
        angles[half + i] = sinf(angle) * rope->factor;
      }
    }
  }
  barrier(thread, threads);
  tick(s, thread, EMBED);
}

static void cache_of(const Step *s, int layer, const Text *text, Cache *c) {
  const Plan *p = s->plan;
  c->half = p->half_cache, c->block = s->block, c->dim = up_to(p->dim, LANES);
  c->table = text->table, c->apart = (size_t)p->kv_heads * s->block * c->dim;
  size_t bytes = c->apart * s->blocks * (p->half_cache ? 2 : 4);
  c->keys = s->cache + (size_t)layer * 2 * bytes;
  c->values = c->keys + bytes;
}

// Norms and rotates one head; the rest up to a whole vector is zero.
static void turn(const Step *s, const Layer *layer, const uint8_t *blob, int m, int head,
                 const float *x, float *out) {
  const Plan *p = s->plan;
  int half = p->rotary / 2;
  memcpy(out, x, p->dim * sizeof(float));
  for (int i = p->dim; i < up_to(p->dim, LANES); i++) out[i] = 0;
  if (layer->head_scale >= 0) {
    const float *scale = (const float *)(blob + layer->head_scale) + (size_t)head * p->dim;
    float inverse = 1.0f / sqrtf(squares_of(out, 0, p->dim) / p->dim + p->epsilon);
    for (int i = 0; i < p->dim; i++) out[i] *= inverse * scale[i];
  }
  if (layer->rope < 0) return;
  const float *cosine = s->angles[layer->rope] + (size_t)m * 2 * half, *sine = cosine + half;
  for (int i = 0; i < half; i++) {
    float a = out[i], b = out[half + i];
    out[i] = a * cosine[i] - b * sine[i];
    out[half + i] = b * cosine[i] + a * sine[i];
  }
}

static void rotate(Step *s, int l, int thread, int threads) {
  const Plan *p = s->plan;
  const Layer *layer = &s->layers[l];
  int heads = layer->heads, all = heads + layer->kv_heads, dim = up_to(p->dim, LANES), from, to;
  size_t width = up_to((all + layer->kv_heads) * p->dim, LANES);
  // A head after the other, so that threads rarely write to neighbouring slots of one.
  share(s->rows * all, thread, threads, &from, &to);
  for (int unit = from; unit < to; unit++) {
    int m = unit % s->rows, head = unit / s->rows;
    const float *x = s->fused + m * width + (size_t)head * p->dim;
    float *out = s->turned + ((size_t)m * all + head) * dim;
    turn(s, layer, s->blobs[l], m, head, x, out);
    if (head < heads) continue;
    float value[dim];
    memset(value, 0, sizeof value);
    memcpy(value, x + (size_t)layer->kv_heads * p->dim, p->dim * sizeof(float));
    const Text *text = text_of(s, s->owner[m]);
    Cache c;
    cache_of(s, l, text, &c);
    write_slot(&c, head - heads, text->slot + m - s->first[s->owner[m]], out, value);
  }
  barrier(thread, threads);
  tick(s, thread, ROTATE);
}

// Attends with rows [first, first + count) of the group * tokens of a text that share a key head.
static void attend_tile(Step *s, int l, int i, int head, int first, int count, int thread) {
  const Plan *p = s->plan;
  const Layer *layer = &s->layers[l];
  const Text *text = text_of(s, i);
  int group = layer->heads / layer->kv_heads, all = layer->heads + layer->kv_heads;
  int dim = up_to(p->dim, LANES);
  const float *slopes = p->positions == ALIBI ? (const float *)(s->shared + p->slopes) : NULL;
  int start = text->start, window = layer->window;
  Tile t = {.softcap = p->attention_softcap, .next = &ahead[thread]};
  for (int r = 0; r < count; r++) {  // rows of one token are neighbours
    int token = (first + r) / group, query = head * group + (first + r) % group;
    int m = s->first[i] + token, slot = text->slot + token;
    t.query[r] = s->turned + ((size_t)m * all + query) * dim;
    t.out[r] = s->mixed + ((size_t)m * layer->heads + query) * dim;
    t.to[r] = slot + 1;
    t.from[r] = window && slot + 1 - window > start ? slot + 1 - window : start;
    if (t.from[r] > t.to[r]) t.from[r] = t.to[r];  // padding sees nothing
    t.slope[r] = slopes ? slopes[query] : 0;
  }
  Cache c;
  cache_of(s, l, text, &c);
  attend(count, &t, &c, head, s->scores + (size_t)thread * TILE_ROWS * s->stride, s->stride);
}

// What a row of a text that reads one token costs: the slots it sees, and some for being a row.
static long row_cost(const Step *s, int l, const Text *text) {
  int seen = text->slot + 1 - text->start, window = s->layers[l].window;
  return 32 + (window && seen > window ? window : seen);
}

static void attention(Step *s, int l, int thread, int threads) {
  int kv_heads = s->layers[l].kv_heads, group = s->layers[l].heads / kv_heads, unit = 0;
  long total = 0, at = 0;
  for (int i = 0; i < s->texts; i++) {
    const Text *text = text_of(s, i);
    if (text->count == 1) {
      total += row_cost(s, l, text) * kv_heads * group;
      continue;
    }
    int rows = text->count * group;
    for (int first = 0; first < rows; first += TILE_ROWS)  // causal: later ones cost more
      for (int head = 0; head < kv_heads; head++, unit++)
        if (unit % threads == thread)
          attend_tile(s, l, i, head, first, rows - first < TILE_ROWS ? rows - first : TILE_ROWS,
                      thread);
  }
  // Single tokens: equal parts of the slots that are seen, neighbours, so that a thread reads as few
  // key heads as can be.
  long from = total * thread / threads, to = total * (thread + 1) / threads;
  for (int i = 0; i < s->texts && total; i++) {
    const Text *text = text_of(s, i);
    long cost = row_cost(s, l, text);
    if (text->count > 1) continue;
    for (int head = 0; head < kv_heads; head++, at += cost * group) {
      int first = at >= from ? 0 : (int)((from - at + cost - 1) / cost);
      int last = at >= to ? 0 : (int)((to - at + cost - 1) / cost);
      if (last > group) last = group;
      for (; first < last; first += TILE_ROWS)
        attend_tile(s, l, i, head, first, last - first < TILE_ROWS ? last - first : TILE_ROWS,
                    thread);
    }
  }
  barrier(thread, threads);
  tick(s, thread, ATTEND);
}

static void activate(const Step *s, int l, int thread, int threads) {
  const Plan *p = s->plan;
  int from, to, width = up_to(s->layers[l].mlp, LANES);
  share(width / LANES, thread, threads, &from, &to);
  for (int m = 0; m < s->rows; m++) {
    float *g = s->gate + (size_t)m * width, *u = s->up + (size_t)m * width;
    int a = from * LANES, b = to * LANES;
    for (int i = a; i < b; i += LANES) {
      v16 x = load16(g + i);
      if (p->activation == SILU) x = x / (1.0f + exp16(-x));
      else if (p->activation == GELU_TANH)
        x = 0.5f * x * (1.0f + tanh16(0.79788456f * (x + 0.044715f * x * x * x)));
      else if (p->activation == RELU) x = max16(x, all16(0));
      else for (int k = 0; k < LANES; k++) x[k] = 0.5f * x[k] * (1.0f + erff(x[k] * 0.70710678f));
      if (p->gated) x *= load16(u + i);
      store16(g + i, x);
    }
  }
}

// x += a (+ b), each normed first where its norm is given.
static void add_aside(Step *s, const uint8_t *blob, int count, const int32_t *norms, int thread,
                      int threads) {
  int from, to, width = up_to(s->plan->hidden, LANES);
  share(s->rows, thread, threads, &from, &to);
  for (int m = from; m < to; m++)
    for (int k = 0; k < count; k++) {
      float *x = s->x + (size_t)m * width, *add = s->aside[k] + (size_t)m * width;
      if (norms[k] >= 0) norm(s->plan, add, (const float *)(blob + norms[k]), add);
      for (int i = 0; i < s->plan->hidden; i++) x[i] += add[i];
    }
  barrier(thread, threads);
}

static void block(Step *s, int l, int thread, int threads) {
  const Plan *p = s->plan;
  const Layer *layer = &s->layers[l];
  const uint8_t *blob = s->blobs[l];
  size_t width = up_to(p->hidden, LANES), mlp = up_to(layer->mlp, LANES);
  int post = layer->attention_post_norm >= 0, aside = post || p->parallel;

  const Rows *in = prepare(s, fill_normed, blob + layer->attention_norm, s->rows, p->hidden,
                           thread, threads);
  in = through(s, &layer->query_key_value_first, &layer->query_key_value, blob, in, s->rows,
               QUERY_KEY_VALUE, thread, threads);
  product(&layer->query_key_value, blob, in, s->rows, s->fused,
          up_to(layer->query_key_value.rows, LANES), 0, 0, thread, threads);
  look_ahead(begins(&layer->out_first, &layer->out), blob, thread, threads);
  barrier(thread, threads);
  tick(s, thread, QUERY_KEY_VALUE);
  rotate(s, l, thread, threads);
  attention(s, l, thread, threads);
  in = prepare(s, fill_mixed, layer, s->rows, layer->heads * p->dim, thread, threads);
  in = through(s, &layer->out_first, &layer->out, blob, in, s->rows, OUT, thread, threads);
  product(&layer->out, blob, in, s->rows, aside ? s->aside[0] : s->x, width, !aside, 0, thread,
          threads);
  look_ahead(begins(&layer->gate_up_first, &layer->gate), blob, thread, threads);
  barrier(thread, threads);
  if (post && !p->parallel) add_aside(s, blob, 1, &layer->attention_post_norm, thread, threads);
  tick(s, thread, OUT);

  in = prepare(s, fill_normed, blob + layer->mlp_norm, s->rows, p->hidden, thread, threads);
  in = through(s, &layer->gate_up_first, &layer->gate, blob, in, s->rows, GATE_UP, thread,
               threads);
  product(&layer->gate, blob, in, s->rows, s->gate, mlp, 0, 0, thread, threads);
  if (p->gated) product(&layer->up, blob, in, s->rows, s->up, mlp, 0, 0, thread, threads);
  activate(s, l, thread, threads);
  look_ahead(begins(&layer->down_first, &layer->down), blob, thread, threads);
  barrier(thread, threads);
  tick(s, thread, GATE_UP);
  in = prepare(s, fill_activated, layer, s->rows, layer->mlp, thread, threads);
  in = through(s, &layer->down_first, &layer->down, blob, in, s->rows, DOWN, thread, threads);
  product(&layer->down, blob, in, s->rows, !aside ? s->x : s->aside[p->parallel], width, !aside, 0,
          thread, threads);
  if (l + 1 < p->layers)
    look_ahead(begins(&layer[1].query_key_value_first, &layer[1].query_key_value), s->blobs[l + 1],
               thread, threads);
  else if (!(s->part & GIVES_HIDDEN))
    look_ahead(begins(&p->head_first, &p->head), s->shared, thread, threads);
  barrier(thread, threads);
  int32_t norms[2] = {layer->attention_post_norm, p->parallel ? -1 : layer->mlp_post_norm};
  if (p->parallel) add_aside(s, blob, 2, norms, thread, threads);
  else if (post) add_aside(s, blob, 1, norms + 1, thread, threads);
  tick(s, thread, DOWN);
}

static void logits(Step *s, int thread, int threads) {
  const Plan *p = s->plan;
  int rows = s->outputs, from, to;
  const Rows *in = prepare(s, fill_wanted_normed, s->shared + p->final_norm, rows, p->hidden,
                           thread, threads);
  in = through(s, &p->head_first, &p->head, s->shared, in, rows, HEAD, thread, threads);
  product(&p->head, s->shared, in, rows, s->logits, p->vocabulary, 0, 1, thread, threads);
  if (p->logit_softcap > 0) {
    share(up_to(p->vocabulary, LANES) / LANES, thread, threads, &from, &to);
    from *= LANES, to = to * LANES < p->vocabulary ? to * LANES : p->vocabulary;
    for (int m = 0; m < rows; m++) {
      float *row = s->logits + (size_t)m * p->vocabulary;
      for (int i = from; i < to; i++)
        row[i] = p->logit_softcap * tanhf(row[i] / p->logit_softcap);
    }
  }
  barrier(thread, threads);
  tick(s, thread, HEAD);
}

static void give_hidden(Step *s, int thread, int threads) {
  int from, to, hidden = s->plan->hidden, width = up_to(hidden, LANES);
  share(s->rows, thread, threads, &from, &to);
  for (int m = from; m < to; m++)
    memcpy(s->logits + (size_t)m * hidden, s->x + (size_t)m * width, hidden * sizeof(float));
  barrier(thread, threads);
  tick(s, thread, HEAD);
}

static void job(void *argument, int thread, int threads) {
  Step *s = argument;
  tick(s, thread, -1);
  embed(s, thread, threads);
  for (int l = 0; l < s->plan->layers; l++) block(s, l, thread, threads);
  if (s->part & GIVES_HIDDEN) give_hidden(s, thread, threads);
  else if (s->outputs) logits(s, thread, threads);
}

static Rows rows_of(int slot, int rows, int width) {
  return (Rows){scratch(slot, (size_t)rows * width * sizeof(float)),
                scratch(slot + 1, (size_t)rows * width),
                scratch(slot + 2, (size_t)rows * width / BLOCK * sizeof(float)),
                scratch(slot + 3, (size_t)rows * width / BLOCK * sizeof(int32_t)), width};
}

// Gives 0 where memory has run out.
static int reserve(Step *s, int threads) {
  const Plan *p = s->plan;
  int rows = s->rows, dim = up_to(p->dim, LANES), all = p->heads + 2 * p->kv_heads;
  int hidden = up_to(p->hidden, BLOCK), mlp = up_to(p->mlp, BLOCK);
  int widest = up_to(p->heads * p->dim, BLOCK);
  widest = widest > hidden ? widest : hidden;
  widest = widest > mlp ? widest : mlp;
  widest = widest > up_to(p->rank, BLOCK) ? widest : up_to(p->rank, BLOCK);
  size_t f = sizeof(float) * (size_t)rows;
  s->x = scratch(0, f * hidden);
  s->fused = scratch(1, f * up_to(all * p->dim, LANES));
  s->turned = scratch(2, f * (p->heads + p->kv_heads) * dim);
  s->mixed = scratch(3, f * p->heads * dim);
  s->gate = scratch(4, f * mlp);
  s->up = scratch(5, f * mlp);
  s->aside[0] = scratch(6, f * hidden);
  s->aside[1] = scratch(7, f * hidden);
  // Rows a power of two apart would share a cache set.
  s->stride = up_to(s->longest, 4 * LANES) + 2 * LANES;
  s->scores = scratch(8, sizeof(float) * threads * TILE_ROWS * s->stride);
  s->angles[0] = scratch(9, f * 2 * (p->rotary + 1));
  s->angles[1] = scratch(10, f * 2 * (p->rotary + 1));
  s->thin = scratch(19, f * up_to(p->rank, LANES));
  s->shares = rows_of(11, rows, widest);
  Rows own = rows_of(15, threads, 2 * widest);  // apart, so that no cache line is shared
  s->owner = scratch(20, sizeof(int32_t) * rows);
  s->first = scratch(21, sizeof(int32_t) * s->texts);
  s->wanted = scratch(22, sizeof(int32_t) * rows);
  for (int i = 0; i < 23; i++)
    if (!memory[i]) return 0;
  for (int t = 0; t < threads; t++)
    s->own[t] = (Rows){own.x + (size_t)t * 2 * widest, own.q + (size_t)t * 2 * widest,
                       own.scale + (size_t)t * 2 * widest / BLOCK,
                       own.offset + (size_t)t * 2 * widest / BLOCK, widest};
  return 1;
}

// Who owns which row, and which rows give logits.
static void lay_out(Step *s) {
  int row = 0;
  for (int i = 0; i < s->texts; i++) {
    const Text *text = text_of(s, i);
    s->first[i] = row;
    for (int t = 0; t < text->count; t++) s->owner[row++] = i;
    for (int t = text->wanted; t > 0; t--) s->wanted[s->outputs++] = row - t;
  }
}

#include "operator.h"
