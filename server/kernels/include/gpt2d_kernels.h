/* The C interface of gpt2d's kernels: one GPT-2, its KV cache, and steps over them. Loaded with ctypes by server/engines/native.py.
 *
 * A call runs on the calling thread and on the model's own helpers; calls for one model must not overlap. A child of fork has none
 * of the helpers: it makes a model of its own. All arrays are row-major and owned by the caller. Functions that return int return 0,
 * or a negative GPT2D_ code.
 */
#ifndef GPT2D_KERNELS_H
#define GPT2D_KERNELS_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define GPT2D_API __declspec(dllexport)
#else
#define GPT2D_API __attribute__((visibility("default")))
#endif

enum { GPT2D_BAD_ARGUMENT = -1, GPT2D_NO_MEMORY = -2 };

/* Raised with every change of this interface or of the layout of the weights. */
enum { GPT2D_VERSION = 7 };
GPT2D_API int gpt2d_version(void);

/* The instruction sets that this processor has and this library knows, best first, with commas between. Static. */
GPT2D_API const char *gpt2d_instruction_sets(void);

/* What stands between the MLP's two matrices, by the names that transformers has for it. */
enum {
    GPT2D_NO_ACTIVATION = -1, /* for gpt2d_matmul */
    GPT2D_GELU_NEW,
    GPT2D_GELU,
    GPT2D_RELU,
    GPT2D_SILU,
    GPT2D_QUICK_GELU,
    GPT2D_TANH,
    GPT2D_MISH,
    GPT2D_ACTIVATIONS
};

typedef struct {
    int32_t layers, heads, width, inner, context, vocabulary;
    int32_t bits;      /* of the blocks' matrices: 32 (float), 8 or 4 (blocks of 32 inputs with an fp16 scale each) */
    int32_t head_bits; /* of the token table and the LM head: 32, or 8 */
    int32_t tied;      /* the LM head is the token table */
    int32_t activation;
    int32_t scaled;          /* attention's scores are divided by the square root of a head's width */
    int32_t scaled_by_layer; /* and by the layer's number, counted from 1 */
    float epsilon;     /* of the layer norms */
    int32_t cache_bits; /* of keys and values: 32 if bits is 32, else 16 or 8 */
} gpt2d_shape;

/* The widest head and the longest context whose keys and values can be bytes: sums of their products stay within 32 bits. */
enum { GPT2D_WIDEST_BYTES = 1 << 15, GPT2D_LONGEST_BYTES = 1 << 17 };

typedef struct gpt2d_model gpt2d_model;

/* Allocate a model with `rows` rows of KV cache; NULL if there is no memory or an argument makes no sense.
 * `instruction_set` is one of gpt2d_instruction_sets, or NULL for the best; for tests and comparisons with :ahead or :wait behind it,
 * which says whether up to three rows fetch weights ahead or leave that to the processor. By default as suits it. The weights are whatever was there until they are written. */
GPT2D_API gpt2d_model *gpt2d_new(const gpt2d_shape *shape, int rows, int threads, const char *instruction_set);
GPT2D_API void gpt2d_free(gpt2d_model *model);

/* Where the caller writes the weights, and how many bytes they are. Their layout is in src/ops.h and src/model.cpp. */
GPT2D_API void *gpt2d_weights(gpt2d_model *model, size_t *bytes);

/* Run `count` tokens: token i is ids[i], in row rows[i], at position positions[i]. Tokens of a row stand together, at
 * positions that follow each other, and see what the row holds before them. Then logits float32 [wanted_count, vocabulary]
 * are those after the tokens wanted[0..], and hidden float32 [count, width], unless it is NULL, what the last norm makes of all.
 * best[0..wanted_count-1], unless it is NULL, says how many of the largest logits of each are needed, 0 for all: then the head
 * may be read in two passes, which leaves minus infinity where a logit was not read. It is not among those, nor equal to one. */
GPT2D_API int gpt2d_forward(gpt2d_model *model, int count, const int32_t *ids, const int32_t *rows, const int32_t *positions,
                            int wanted_count, const int32_t *wanted, float *logits, float *hidden, const int32_t *best);

/* What is told of tokens at their places in a text. Of place i, after the token places[i] of a step, it is told of tokens[i]. No
 * logit is kept but the token's own, so that memory does not grow with count times the vocabulary. The same bits with any number
 * of threads and whatever else the step has. */
typedef struct {
    int32_t count;
    const int32_t *places, *tokens;
    const float *members; /* [vocabulary]: 1 for the tokens whose mass is told, 0 for others; or NULL */
    float *logits;        /* the token's own; not a number where one of all is none */
    double *totals;       /* logarithm of the sum of all e^logit: the log-probability is the logit less this */
    double *entropies;    /* of the distribution, in nats */
    double *masses;       /* logarithm of the members' probability; unless members is NULL */
    int32_t *ranks;       /* 1, and the number of greater logits */
    int32_t *greedy;      /* the token with the largest logit, of several the lowest */
} gpt2d_scores;

/* Run tokens as gpt2d_forward does, and tell scores. */
GPT2D_API int gpt2d_score(gpt2d_model *model, int count, const int32_t *ids, const int32_t *rows, const int32_t *positions,
                          int wanted_count, const int32_t *wanted, float *logits, const gpt2d_scores *scores);

/* The strips of 16 tokens whose exact logits the last gpt2d_forward computed after a first pass; 0: it read the head once. */
GPT2D_API int gpt2d_strips_read(gpt2d_model *model);

/* For tests: read the head in two passes wherever that is asked for and right, and not only where it is worth it. */
GPT2D_API void gpt2d_always_two_passes(gpt2d_model *model, int always);

/* Run one layer of a model of 8 or 4 bits alone: x, float [count, width], becomes what the layer makes of it. Tokens as in
 * gpt2d_forward. What its four matrices are multiplied by goes to q[0..3] and scales[0..3]: [count, n] and [count, n / 32], where
 * n is the matrix's number of inputs. Widths are padded to 32. */
GPT2D_API int gpt2d_observe(gpt2d_model *model, int layer, int count, const int32_t *rows, const int32_t *positions, float *x,
                            int8_t *const *q, float *const *scales);

/* Round a matrix of [outputs, inputs] weights to 4 bits so that the errors make each other good for inputs whose products,
 * x x^T summed up, are [inputs, inputs]: values 0 to 15 with the zero at 8, [outputs, inputs], and fp16 scales, [outputs, inputs / 32].
 * Uses up products and weights. The same bits with any number of threads. */
GPT2D_API int gpt2d_calibrate(int outputs, int inputs, double *products, float *weights, int threads, uint8_t *values, uint16_t *scales);

/* Say how many of its threads do the next calls for a model; the others sleep. At first all do. */
GPT2D_API int gpt2d_use_threads(gpt2d_model *model, int threads);

/* The seconds of the last gpt2d_forward in which each thread waited for a core that others had, into [threads]; returns
 * their sum. Threads do not sleep in a step, so that is what the clock on the wall says more than the thread's own. */
GPT2D_API double gpt2d_waits(gpt2d_model *model, double *seconds);

/* Copy positions first..positions-1 of a row over those of another row, which is the same before them. */
GPT2D_API int gpt2d_move(gpt2d_model *model, int source, int target, int first, int positions);

/* Copy a row's first positions out and in: [layers, heads, positions, head], of float, fp16, or with cache_bits 8
 * [layers, heads, positions, head + 4], of bytes, with a float behind each head of them: the scale that makes them values. */
GPT2D_API int gpt2d_export(gpt2d_model *model, int row, int positions, void *keys, void *values);
GPT2D_API int gpt2d_restore(gpt2d_model *model, int row, int positions, const void *keys, const void *values);

/* How a token is chosen. First logits change: biases[i] is added to that of the token biased[i], in this order; those of
 * banned[0..banned_count-1] become minus infinity; then the penalties on the tokens seen[0..seen_count-1], each once, which
 * have come counts[.] times: their logits are divided by `repetition` if they are positive and multiplied with it if not; then
 * `presence` is subtracted where they have come at all, and `frequency` for each time.
 * Then: among the top_k largest logits (0: all) and what equals the last of them, of these the fewest that reach the share
 * top_p, of these what has min_p times the chance of the likeliest, of these the fewest whose surprise is nearest to the mean
 * and that reach the share typical_p (1: all); then where the running sum of their weights passes the share `uniform` (0 to 1)
 * of it. As server/worker/sampling.py does. A temperature of 0 takes the likeliest. */
typedef struct {
    double uniform, top_p, typical_p;
    float temperature, min_p;
    int32_t top_k, biased_count, banned_count, seen_count;
    const int32_t *biased;
    const float *biases;
    const int32_t *banned, *seen, *counts;
    float repetition, presence, frequency;
} gpt2d_choice;

/* tokens[i] is chosen by *choices[i] from row rows[i] of logits float32 [., vocabulary], which the choice changes; -1 where
 * these are not numbers, where a token that the choice names is not in the vocabulary, or where the settings make no sense.
 * GPT2D_NO_MEMORY changes nothing. */
GPT2D_API int gpt2d_sample(const char *instruction_set, int count, const int32_t *rows, float *logits, int vocabulary,
                           const gpt2d_choice *const *choices, int32_t *tokens);

/* The same for a model's vocabulary, by the model's threads. No row may come twice. Where `logits` is null they are those of the
 * last gpt2d_forward, where it has written them, and must be as it has: something is known of them, so that it is faster.
 * GPT2D_BAD_ARGUMENT where a row was not in it. */
GPT2D_API int gpt2d_choose(gpt2d_model *model, int count, const int32_t *rows, float *logits, const gpt2d_choice *const *choices,
                           int32_t *tokens);

/* y[rows, outputs] = activation(x[rows, inputs] times a matrix as it lies in the weights), for tests. Sizes are multiples of 32. */
GPT2D_API int gpt2d_matmul(const char *instruction_set, int bits, int outputs, int inputs, const void *matrix, int rows, int activation,
                           const float *x, float *y);

#ifdef __cplusplus
}
#endif
#endif
