// What a decoder is made of, as the kernel reads it: 32-bit fields, in the order of fused_plan.py.
#pragma once
#include "matrix.h"

enum { SILU, GELU, GELU_TANH, RELU };
enum { ROPE, LEARNED, ALIBI, NONE };

typedef struct {
  Matrix query_key_value, out, gate, up, down;
  // What their inputs go through before where a product is two thin ones; no rows where it is one.
  Matrix query_key_value_first, out_first, gate_up_first, down_first;
  // Byte offsets of float rows in the layer's blob; -1 where there is none. Norms: scale, bias.
  int32_t attention_norm, mlp_norm, attention_post_norm, mlp_post_norm, head_scale;
  int32_t window, rope;  // 0: sees everything; -1: no rotation
  int32_t mlp, heads, kv_heads;  // the plan's are the largest of all layers'
} Layer;

typedef struct {
  float factor;             // of cos and sin
  int32_t original;         // context from which on the long frequencies hold
  int32_t frequencies, long_frequencies;  // offsets; -1: no long ones
} Rope;

typedef struct {
  int32_t layers, hidden, heads, kv_heads, dim, mlp, vocabulary, rotary;
  int32_t layer_norm, activation, gated, positions, parallel, half_cache, context;
  int32_t rank;  // the most rows of a first matrix
  float epsilon, attention_softcap, logit_softcap;
  Matrix embedding, head, head_first;
  int32_t embedding_scale, position_embedding, final_norm, slopes;  // offsets in the first blob
  Rope ropes[2];
} Plan;
