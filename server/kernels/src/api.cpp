// The C interface over Model; no exception leaves it.
#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

#include "calibrate.h"
#include "cpu.h"
#include "gpt2d_kernels.h"
#include "model.h"
#include "rounding.h"

struct gpt2d_model {
    gpt2d::Model model;
};

namespace gpt2d {
namespace {

#if defined(__x86_64__)
const Ops *const all[] = {
    avx512_ops,
#if defined(GPT2D_AVXVNNI)
    avxvnni_ops,
#endif
    avx2_ops, plain_ops};
// Intel's processors wait for memory where they are not told what comes, AMD's where they are: 1.6 and 0.8 times the speed of one
// row (docs/decisions/native-kernels.md).
bool fetches_ahead() { return !made_by_amd(); }
#elif defined(__aarch64__)
const Ops *const all[] = {i8mm_ops, dotprod_ops, plain_ops};
bool fetches_ahead() { return false; }
#else
const Ops *const all[] = {plain_ops};
bool fetches_ahead() { return false; }
#endif

template <class Function>
int guarded(Function function) {
    DefaultRounding rounding;
    try {
        return function();
    } catch (...) {  // what the standard library throws here says that memory or another resource has run out
        return GPT2D_NO_MEMORY;
    }
}

// Not within a function of the interface: what Windows exports may have no variable of a thread.
Draft &own_draft() {
    static thread_local Draft draft;
    return draft;
}

bool known(int activation) { return activation >= 0 && activation < GPT2D_ACTIVATIONS; }

bool sensible(const gpt2d_shape &s, int rows) {
    for (int n : {s.layers, s.heads, s.width, s.inner, s.context, s.vocabulary})
        if (n < 1 || n > 1 << 20) return false;
    bool exact = s.bits == 32 && s.head_bits == 32 && s.cache_bits == 32, blocks = (s.bits == 8 || s.bits == 4) && s.head_bits == 8;
    if (rows < 1 || int64_t(s.heads) * std::max(rows, s.layers) > INT32_MAX) return false;
    bool bytes = s.cache_bits == 8 && s.width / s.heads <= GPT2D_WIDEST_BYTES && s.context <= GPT2D_LONGEST_BYTES;
    bool cached = bytes || s.cache_bits == 16;
    return s.width % s.heads == 0 && (exact || (blocks && cached)) && s.epsilon >= 0 && known(s.activation);
}

}  // namespace

const Ops *find_ops(const char *name) {
    std::string_view wanted = name ? name : "", set = wanted.substr(0, wanted.find(':')), how = wanted.substr(set.size());
    bool ahead = how.empty() ? fetches_ahead() : how == ":ahead";
    if (!how.empty() && !ahead && how != ":wait") return nullptr;
    for (const Ops *ops : all)
        if ((!name || set == ops->name) && ops->usable()) return ops + ahead;
    return nullptr;
}

}  // namespace gpt2d

using namespace gpt2d;

int gpt2d_version(void) { return GPT2D_VERSION; }

const char *gpt2d_instruction_sets(void) {
    struct Names {
        char text[64] = "";
        Names() {
            for (const Ops *ops : all)
                if (ops->usable()) std::strcat(std::strcat(text, text[0] ? "," : ""), ops->name);
        }
    };
    static const Names names;
    return names.text;
}

gpt2d_model *gpt2d_new(const gpt2d_shape *shape, int rows, int threads, const char *instruction_set) {
    const Ops *ops = find_ops(instruction_set);
    if (!ops || !shape || !sensible(*shape, rows) || threads < 1 || threads > 1024) return nullptr;
    try {
        return new gpt2d_model{{*shape, rows, threads, *ops}};
    } catch (...) {
        return nullptr;
    }
}

void gpt2d_free(gpt2d_model *model) { delete model; }

void *gpt2d_weights(gpt2d_model *model, size_t *bytes) {
    *bytes = model->model.weight_bytes();
    return model->model.weights();
}

int gpt2d_forward(gpt2d_model *model, int count, const int32_t *ids, const int32_t *rows, const int32_t *positions, int wanted_count,
                  const int32_t *wanted, float *logits, float *hidden, const int32_t *best) {
    return guarded([&] {
        Step step{count, ids, rows, positions, wanted_count, wanted, logits, hidden, best};
        if (!model->model.valid(step)) return int(GPT2D_BAD_ARGUMENT);
        model->model.forward(step);
        return 0;
    });
}

int gpt2d_score(gpt2d_model *model, int count, const int32_t *ids, const int32_t *rows, const int32_t *positions, int wanted_count,
                const int32_t *wanted, float *logits, const gpt2d_scores *scores) {
    return guarded([&] {
        Step step{count, ids, rows, positions, wanted_count, wanted, logits, nullptr};
        step.scores = scores;
        if (!scores || !model->model.valid(step)) return int(GPT2D_BAD_ARGUMENT);
        model->model.forward(step);
        return 0;
    });
}

int gpt2d_observe(gpt2d_model *model, int layer, int count, const int32_t *rows, const int32_t *positions, float *x,
                  int8_t *const *q, float *const *scales) {
    return guarded([&] {
        std::vector<int32_t> ids(size_t(std::max(0, count)), 0);
        Look look{layer, x, q, scales};
        Step step{count, ids.data(), rows, positions, 0, nullptr, nullptr, nullptr, nullptr, &look};
        if (!model->model.valid(step)) return int(GPT2D_BAD_ARGUMENT);
        model->model.forward(step);
        return 0;
    });
}

int gpt2d_calibrate(int outputs, int inputs, double *products, float *weights, int threads, uint8_t *values, uint16_t *scales) {
    if (outputs < 1 || inputs < 1 || inputs % BLOCK || threads < 1 || threads > 1024) return GPT2D_BAD_ARGUMENT;
    return guarded([&] {
        Team team(threads);
        return calibrate(outputs, inputs, products, weights, values, scales, team) ? 0 : int(GPT2D_BAD_ARGUMENT);
    });
}

int gpt2d_strips_read(gpt2d_model *model) { return model->model.strips_read(); }

void gpt2d_always_two_passes(gpt2d_model *model, int always) { model->model.always_two_passes(always != 0); }

int gpt2d_use_threads(gpt2d_model *model, int threads) {
    if (threads < 1 || threads > model->model.team().size()) return GPT2D_BAD_ARGUMENT;
    return guarded([&] { return model->model.team().use(threads), 0; });
}

double gpt2d_waits(gpt2d_model *model, double *seconds) {
    const Team &team = model->model.team();
    double sum = 0;
    for (int i = 0; i < team.size(); i++) sum += seconds[i] = team.off(i);
    return sum;
}

int gpt2d_move(gpt2d_model *model, int source, int target, int first, int positions) {
    if (!model->model.valid(source, positions) || !model->model.valid(target, positions)) return GPT2D_BAD_ARGUMENT;
    if (first < 0 || first > positions) return GPT2D_BAD_ARGUMENT;
    return guarded([&] { return model->model.move(source, target, first, positions), 0; });
}

int gpt2d_export(gpt2d_model *model, int row, int positions, void *keys, void *values) {
    if (!model->model.valid(row, positions)) return GPT2D_BAD_ARGUMENT;
    return guarded([&] { return model->model.copy(row, positions, keys, values, true), 0; });
}

int gpt2d_restore(gpt2d_model *model, int row, int positions, const void *keys, const void *values) {
    if (!model->model.valid(row, positions)) return GPT2D_BAD_ARGUMENT;
    return guarded([&] { return model->model.copy(row, positions, const_cast<void *>(keys), const_cast<void *>(values), false), 0; });
}

int gpt2d_sample(const char *instruction_set, int count, const int32_t *rows, float *logits, int vocabulary,
                 const gpt2d_choice *const *choices, int32_t *tokens) {
    const Ops *ops = find_ops(instruction_set);
    if (!ops || count < 0 || vocabulary < 1) return GPT2D_BAD_ARGUMENT;
    return guarded([&] {
        Draft &draft = own_draft();
        draft.reserve(vocabulary);
        for (int i = 0; i < count; i++) tokens[i] = ops->sample(logits + size_t(rows[i]) * vocabulary, vocabulary, *choices[i], nullptr, draft);
        return 0;
    });
}

int gpt2d_choose(gpt2d_model *model, int count, const int32_t *rows, float *logits, const gpt2d_choice *const *choices, int32_t *tokens) {
    return guarded([&] { return model->model.choose(count, rows, logits, choices, tokens) ? 0 : int(GPT2D_BAD_ARGUMENT); });
}

int gpt2d_matmul(const char *instruction_set, int bits, int outputs, int inputs, const void *matrix, int rows, int activation,
                 const float *x, float *y) {
    const Ops *ops = find_ops(instruction_set);
    if (!ops || outputs < 1 || outputs % PANEL || inputs < 1 || inputs % BLOCK || rows < 1) return GPT2D_BAD_ARGUMENT;
    if (bits != 32 && bits != 8 && bits != 4) return GPT2D_BAD_ARGUMENT;
    if (activation != GPT2D_NO_ACTIVATION && !known(activation)) return GPT2D_BAD_ARGUMENT;
    return guarded([&] {
        Matrix m;
        m.data = static_cast<const uint8_t *>(matrix), m.outputs = outputs, m.inputs = inputs, m.bits = bits;
        std::vector<float> floats(x, x + size_t(rows) * inputs), scales(floats.size() / BLOCK);
        std::vector<int8_t> q(floats.size());
        std::vector<int32_t> offsets(scales.size());
        if (bits != 32) ops->quantise(x, rows * inputs, m.zero(), q.data(), scales.data(), offsets.data());
        Finish finish = activation == GPT2D_GELU_NEW ? Finish::gelu_new : Finish::activate;
        if (activation == GPT2D_NO_ACTIVATION) finish = Finish::store;
        Result result{y, outputs, finish, activation};
        ops->matmul(m, {floats.data(), inputs, q.data(), scales.data(), offsets.data()}, rows, result, 0, m.panels());
        return 0;
    });
}
