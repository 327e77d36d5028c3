// Attention within each text of a packed sequence, softmax(scale * Q K^T) V, in float32; built and called by
// cpu_attention.py.
//
// A block is up to 32 queries of one text, of all heads that share a key. Its scores lie with one query in each lane of
// a vector, so that keys are read as they are and a softmax is the same operation on every lane.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

constexpr int LANES = 16, BLOCK = 2 * LANES;
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

struct Shape {
    int64_t heads, shared;  // heads of queries, and how many of them share a key
    int64_t dim, width;     // numbers in a query or key, and in a value
    int64_t q_head, q_token, k_head, k_token, v_head, v_token;  // strides
    int64_t before, after;  // how many tokens a token sees besides itself
    float scale;
};

static inline Vector load(const float* from) {
    Vector x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

static inline void store(float* to, Vector x) { std::memcpy(to, &x, sizeof x); }

// NaN in `a` stays.
static inline Vector larger(Vector a, Vector b) { return b > a ? b : a; }

// e^x for x <= 0, by e^x = 2^n e^r with |r| <= ln(2) / 2 and a polynomial for e^r; e^-87 below -87.
static inline Vector exponential(Vector x) {
    x = larger(x, Vector{} - 87.0f);
    Integers n = __builtin_convertvector(x * 1.44269504f - 0.5f, Integers);
    Vector whole = __builtin_convertvector(n, Vector);
    Vector r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Vector e = 8.3333310e-3f + r * 1.3888889e-3f;
    e = 0.5f + r * (1.6666667e-1f + r * (4.1666668e-2f + r * e));
    return (1.0f + r * (1.0f + r * e)) * (Vector)((n + 127) << 23);
}

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, Integers{__VA_ARGS__})
#endif

// 16 x 16 numbers, by swapping halves, then quarters, eighths and neighbours.
static inline void transpose(Vector* x) {
    for (int i = 0; i < 16; i++)
        if (!(i & 8)) {
            Vector a = x[i], b = x[i + 8];
            x[i] = PICK(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
            x[i + 8] = PICK(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
        }
    for (int i = 0; i < 16; i++)
        if (!(i & 4)) {
            Vector a = x[i], b = x[i + 4];
            x[i] = PICK(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
            x[i + 4] = PICK(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
        }
    for (int i = 0; i < 16; i++)
        if (!(i & 2)) {
            Vector a = x[i], b = x[i + 2];
            x[i] = PICK(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
            x[i + 2] = PICK(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        }
    for (int i = 0; i < 16; i++)
        if (!(i & 1)) {
            Vector a = x[i], b = x[i + 1];
            x[i] = PICK(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
            x[i + 1] = PICK(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
        }
}

struct Matrix {
    const float* at;
    int64_t row, column;  // strides
};

// M vectors of each of N rows of the matrix product a b, of which b's columns are contiguous.
template <int N, int M>
static inline void tile(Matrix a, const float* b, int64_t b_row, int64_t depth, float* out, int64_t out_row) {
    Vector sum[N][M] = {};
    for (int64_t d = 0; d < depth; d++)
        for (int m = 0; m < M; m++) {
            Vector x = load(b + d * b_row + m * LANES);
            for (int i = 0; i < N; i++) sum[i][m] += x * a.at[i * a.row + d * a.column];
        }
    for (int i = 0; i < N; i++)
        for (int m = 0; m < M; m++) store(out + i * out_row + m * LANES, sum[i][m]);
}

// The same of any number of rows; the last eight may overlap those before.
template <int M>
static void product(int64_t rows, Matrix a, const float* b, int64_t b_row, int64_t depth, float* out, int64_t out_row) {
    auto some = [&](auto tile, int64_t i) {
        tile(Matrix{a.at + i * a.row, a.row, a.column}, b, b_row, depth, out + i * out_row, out_row);
    };
    int64_t i = 0;
    for (; rows >= 8 && i < rows; i += 8) some(tile<8, M>, i = std::min(i, rows - 8));
    for (; i + 2 <= rows; i += 2) some(tile<2, M>, i);
    for (; i < rows; i++) some(tile<1, M>, i);
}

// `rows` queries from the `first` on, counted head by head. Pointers are to the text's first token and the first head.
static void block(const Shape& shape, const float* q, const float* k, const float* v, float* out, int64_t length,
                  int64_t first, int64_t rows, std::vector<float>& memory) {
    int64_t head[BLOCK], token[BLOCK], low = length, high = 0;
    for (int64_t i = 0, h = first / length, t = first % length; i < BLOCK; i++) {  // lanes to spare repeat the last
        head[i] = h, token[i] = t;
        low = std::min(low, std::max<int64_t>(0, t - shape.before));
        high = std::max(high, std::min(length, t + shape.after + 1));
        if (i + 1 < rows && ++t == length) h++, t = 0;
    }
    const int64_t keys = high - low;
    memory.resize((shape.dim + keys + shape.width) * BLOCK);
    float *queries = memory.data(), *scores = queries + shape.dim * BLOCK, *result = scores + keys * BLOCK;

    for (int64_t d = 0; d < shape.dim; d += LANES) {
        d = std::min(d, shape.dim - LANES);
        for (int i = 0; i < BLOCK; i += LANES) {
            Vector x[LANES];
            for (int j = 0; j < LANES; j++)
                x[j] = load(q + head[i + j] * shape.q_head + token[i + j] * shape.q_token + d) * shape.scale;
            transpose(x);
            for (int j = 0; j < LANES; j++) store(queries + (d + j) * BLOCK + i, x[j]);
        }
    }
    (rows > LANES ? product<2> : product<1>)(keys, {k + low * shape.k_token, shape.k_token, 1}, queries, BLOCK,
                                             shape.dim, scores, BLOCK);
    if (shape.before < length - 1 || shape.after < length - 1)
        for (int64_t j = 0; j < keys; j++)
            for (int i = 0; i < BLOCK; i++)
                if (low + j < token[i] - shape.before || low + j > token[i] + shape.after)
                    scores[j * BLOCK + i] = -1e30f;
    float share[BLOCK];
    for (int64_t i = 0; i < rows; i += LANES) {
        Vector top = load(scores + i), sum = {};
        for (int64_t j = 1; j < keys; j++) top = larger(top, load(scores + j * BLOCK + i));
        for (int64_t j = 0; j < keys; j++) {
            Vector e = exponential(load(scores + j * BLOCK + i) - top);
            store(scores + j * BLOCK + i, e);
            sum += e;
        }
        store(share + i, 1.0f / sum);
    }
    v += low * shape.v_token;
    int64_t d = 0;
    for (; d + BLOCK <= shape.width; d += BLOCK)
        product<2>(rows, {scores, 1, BLOCK}, v + d, shape.v_token, keys, result + d, shape.width);
    for (; d < shape.width; d += LANES) {
        d = std::min(d, shape.width - LANES);
        product<1>(rows, {scores, 1, BLOCK}, v + d, shape.v_token, keys, result + d, shape.width);
    }
    for (int64_t i = 0; i < rows; i++) {
        float* to = out + (token[i] * shape.heads + head[i]) * shape.width;
        for (int64_t d = 0; d < shape.width; d++) to[d] = result[i * shape.width + d] * share[i];
    }
}

// cu_seqlens: where each of the texts begins, and the number of tokens; out: (tokens, heads, width), without gaps.
extern "C" void attend(const float* q, const float* k, const float* v, float* out, const int64_t* cu_seqlens, int64_t texts,
                       const Shape* shape) {
    struct Task {
        int64_t start, length, head, first;
    };
    std::vector<Task> tasks;
    for (int64_t t = 0; t < texts; t++)
        for (int64_t head = 0, length = cu_seqlens[t + 1] - cu_seqlens[t]; head < shape->heads; head += shape->shared)
            for (int64_t first = 0; first < shape->shared * length; first += BLOCK)
                tasks.push_back({cu_seqlens[t], length, head, first});
#pragma omp parallel
    {
        std::vector<float> memory;
#pragma omp for schedule(dynamic, 4)
        for (size_t n = 0; n < tasks.size(); n++) {
            const auto [start, length, head, first] = tasks[n];
            const int64_t key = head / shape->shared;
            block(*shape, q + head * shape->q_head + start * shape->q_token,
                  k + key * shape->k_head + start * shape->k_token, v + key * shape->v_head + start * shape->v_token,
                  out + (start * shape->heads + head) * shape->width, length, first,
                  std::min<int64_t>(BLOCK, shape->shared * length - first), memory);
        }
    }
}
