// The decoder as a LiteRT custom operator, in the C interface of LiteRT 2.x
// (litert/c/litert_custom_op_kernel.h). LiteRT's functions come in as pointers, so that nothing of
// it is needed to compile.
#pragma once

typedef struct { unsigned rank_and_flags; int32_t dimensions[8]; uint32_t strides[8]; } Layout;
typedef int (*LockBuffer)(void *buffer, void **memory, int mode);
typedef int (*UnlockBuffer)(void *buffer);

enum { FINE, OUT_OF_MEMORY, CACHE_WAS_COPIED, WRONG_INPUTS };
enum { TOKENS, CONTROL, CACHE, PLAN, SHARED, BLOBS };

// One for a loaded program. The first fields are shared with fused_runtime.py.
typedef struct {
  int32_t threads, vocabulary, logits, error;  // logits: rows a text has room for
  double seconds[STAGES];
  LockBuffer lock;
  UnlockBuffer unlock;
} Operator;

static int initialize(void *self, const void *data, size_t size) {
  (void)self, (void)data, (void)size;
  return 0;
}

static int layouts(void *self, size_t inputs, const Layout *in, size_t outputs, Layout *out) {
  const Operator *op = self;
  if (inputs < BLOBS || outputs != 2) return 1;
  int batch = in[TOKENS].dimensions[0];
  out[0] = in[CACHE];
  out[1] = (Layout){.rank_and_flags = 3, .dimensions = {batch, op->logits, op->vocabulary}};
  return 0;
}

static int run_step(Operator *op, size_t inputs, void **in, void **out) {
  const Plan *plan = in[PLAN];
  const int32_t *control = in[CONTROL];
  if (inputs != (size_t)(BLOBS + plan->layers)) return WRONG_INPUTS;
  if (in[CACHE] != out[0]) return CACHE_WAS_COPIED;
  Step step = {.plan = plan, .layers = (const Layer *)(plan + 1), .tokens = in[TOKENS],
               .control = control, .shared = in[SHARED],
               .blobs = (const uint8_t *const *)in + BLOBS, .cache = out[0], .logits = out[1],
               .texts = control[0], .rows = control[1], .timed = control[2], .block = control[3],
               .blocks = control[4], .width = control[5], .longest = control[6],
               .part = control[7], .seconds = op->seconds};
  int threads = op->threads < MAX_THREADS ? op->threads : MAX_THREADS;
  pthread_mutex_lock(&pool.turn);
  int fits = reserve(&step, threads);
  if (fits) {
    lay_out(&step);
    run_all(threads, job, &step);
  }
  pthread_mutex_unlock(&pool.turn);
  return fits ? FINE : OUT_OF_MEMORY;
}

static int run_operator(void *self, size_t inputs, void *const *in, size_t outputs,
                        void *const *out) {
  Operator *op = self;
  void **memory_in = calloc(inputs + outputs, sizeof(void *)), **memory_out;
  if (!memory_in) return op->error = OUT_OF_MEMORY;
  memory_out = memory_in + inputs;
  int failed = 0;
  for (size_t i = 0; i < inputs; i++) failed |= op->lock(in[i], &memory_in[i], 0);
  for (size_t i = 0; i < outputs; i++) failed |= op->lock(out[i], &memory_out[i], 2);
  op->error = failed ? WRONG_INPUTS : run_step(op, inputs, memory_in, memory_out);
  for (size_t i = 0; i < inputs; i++) op->unlock(in[i]);
  for (size_t i = 0; i < outputs; i++) op->unlock(out[i]);
  free(memory_in);
  return op->error;
}

static int destroy(void *self) {
  (void)self;  // Python owns it
  return 0;
}

// In the order of LiteRtCustomOpKernel.
void *const tfspeed_kernel[4] = {(void *)initialize, (void *)layouts, (void *)run_operator,
                                 (void *)destroy};
const int32_t tfspeed_sizes[3] = {sizeof(Plan), sizeof(Layer), sizeof(Operator)};
