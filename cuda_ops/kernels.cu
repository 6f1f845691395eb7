// Normalized convolution: everything but the convolution itself (cuda_ops/cuda.py has the algebra and the launches).
//
// One source, two compilers: NVRTC for the GPU (no header is needed), and any C++17 compiler with
// tests/cuda_shim/shim.h for the CPU, where the suite runs these very kernels.
//
// Compiled once per layout (CHANNELS_LAST 0 or 1) and triple of types: X_T of the image x, C_T of the convolution and
// of y, W_T of weight and bias, with WIDE (float, or double for double) for every statistic. A thread block is a tile of
// `pt` pixels by `ct` channels; the contiguous dimension lies along threadIdx.x: pixels for NCHW, channels for
// channels-last. Sums over channels go through shared memory in a fixed order and nothing is atomic, so equal inputs
// give equal bits.

typedef long long i64;

struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };

#ifndef HOST_SHIM
__device__ inline float half_to_float(unsigned short h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
__device__ inline unsigned short float_to_half(float f) {
    unsigned short h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
// The compiler would work out an address anew for every access rather than keep it: these two are beyond its sight.
__device__ inline i64 kept(i64 distance) {
    asm("" : "+l"(distance));
    return distance;
}
template <typename T> __device__ inline T* kept(T* at) {
    asm("" : "+l"(at));
    __builtin_assume(__isGlobal(at));  // or it would no longer know the memory
    return at;
}
#if __CUDA_ARCH__ >= 800
#define HAS_BF16
__device__ inline unsigned short float_to_bf16(float f) {
    unsigned short h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
#endif
#endif

typedef X_T x_t;
typedef C_T c_t;
typedef W_T w_t;
typedef WIDE wide;

__device__ inline wide widen(double v) { return (wide)v; }
__device__ inline wide widen(float v) { return v; }
__device__ inline wide widen(f16 v) { return half_to_float(v.bits); }
__device__ inline wide widen(bf16 v) { return __uint_as_float((unsigned)v.bits << 16); }

__device__ inline void narrow(double* to, wide v) { *to = v; }
__device__ inline void narrow(float* to, wide v) { *to = (float)v; }
__device__ inline void narrow(f16* to, wide v) { to->bits = float_to_half((float)v); }
__device__ inline void narrow(bf16* to, wide v) {
#ifdef HAS_BF16
    to->bits = float_to_bf16((float)v);
#else  // to the nearest, ties to even; NaN stays NaN
    const unsigned u = __float_as_uint((float)v);
    to->bits = (unsigned short)(v != v ? 0x7fc0u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
}

// To the nearest value with TF32's 10 bits of mantissa, ties to even; NaN stays NaN. Other types are never TF32.
__device__ inline void round_to_tf32(float* v) {
    const unsigned u = __float_as_uint(*v);
    if (*v == *v) *v = __uint_as_float((u + 0xfffu + ((u >> 13) & 1u)) & ~0x1fffu);
}
template <typename T> __device__ inline void round_to_tf32(T*) {}

// Every field is eight bytes wide; cuda_ops/nvrtc.py mirrors the order. Absent tensors are null.
struct Args {
    const x_t* x;         // (N, C, H, W)
    const w_t* weight;    // (O, C/G, kh, kw)
    const w_t* bias;      // (O,)
    c_t* filters;         // weight minus the mean of each filter
    wide* pivot;          // (N, G): a value near the data, subtracted from x before anything is summed
    c_t* padded;          // (N, C, H+2ph, W+2pw): x with its border, minus the pivot unless HALF
    wide* pixels;         // (N, G, H+2ph, W+2pw, 2): channel mean and sum of squared deviations of every pixel
    c_t* y;               // (N, O, H', W'): in, the convolution z; out, y
    wide* mu;             // (N, G, H', W'): patch mean minus the pivot
    wide* mean;           // (N, G, H', W'): patch mean
    wide* std;            // (N, G, H', W'): sqrt(variance + eps)
    const c_t* dy;        // gradients of y, mean and std
    const wide* dmean;
    const wide* dstd;
    c_t* dz;              // (N, O, H', W')
    wide* spread;         // (N, G, H', W', 2): a and b of every patch
    wide* partial;        // (blocks, O): sums of the gradient over the pixels of one block
    const c_t* dinput;    // the convolution's input gradient: (N, C, H, W), may be dx itself; with `reflect` of `padded`
    x_t* dx;              // (N, C, H, W)
    const c_t* dfilters;  // the convolution's weight gradient, in the order of `filters`
    w_t* dweight;         // in the order of `weight`
    w_t* dbias;
    i64 images, channels, height, width, outputs, groups;
    i64 kh, kw, sh, sw, ph, pw, dh, dw, out_height, out_width;
    i64 weight_last, filters_last;  // whether the channel is the fastest index
    i64 activation;                 // 0 none, 1 relu, 2 leaky_relu
    i64 blocks;                     // rows of `partial`
    i64 tf32;                       // whether the convolution may round float32 to TF32
    i64 reflect;                    // whether the border mirrors x, instead of zeros
    double slope, eps, entries, degrees;  // entries n of a patch; degrees of freedom n - correction
};
static_assert(sizeof(Args) == ARGS_BYTES, "Args differs from its mirror in cuda_ops/nvrtc.py");

constexpr bool LAST = CHANNELS_LAST;
template <typename A, typename B> constexpr bool SAME = false;
template <typename A> constexpr bool SAME<A, A> = true;
constexpr bool HALF = SAME<x_t, c_t> && sizeof(x_t) == 2;  // the convolution reads x as it is: to centre would round
constexpr int MAX_THREADS = 256;
constexpr int PAIRS = 4;  // loads a thread has in flight, where it reads two tensors,
constexpr int DEPTH = sizeof(x_t) + sizeof(c_t) == 4 ? 8 : 4;  // and where it reads one
constexpr int BLOCKS = sizeof(wide) == 8 ? 2 : 4;              // at least so many fit on a multiprocessor: 64 registers

__device__ inline i64 quotient(i64 a, i64 b) {  // of non-negative numbers; 64-bit division is slow
    return ((a | b) >> 32) ? a / b : (i64)((unsigned)a / (unsigned)b);
}

__device__ inline int thread_index() { return threadIdx.y * blockDim.x + threadIdx.x; }
__device__ inline int thread_count() { return blockDim.x * blockDim.y; }

struct Tile {
    int c, ct, p, pt;
    __device__ Tile()
        : c(LAST ? threadIdx.x : threadIdx.y), ct(LAST ? blockDim.x : blockDim.y),
          p(LAST ? threadIdx.y : threadIdx.x), pt(LAST ? blockDim.y : blockDim.x) {}
};

// Where channel c of pixel `at` of image n lies, and how far it is from there to `more` channels further.
__device__ inline i64 offset(i64 n, i64 c, i64 at, i64 channels, i64 area) {
    return LAST ? (n * area + at) * channels + c : (n * channels + c) * area + at;
}
__device__ inline i64 ahead(int more, i64 area) { return LAST ? more : (i64)more * (int)area; }

// body(Count<N>(), c) for the channels c, c + step, ... below `last`, N of them at a time: without a test for each.
template <int N> struct Count { static constexpr int value = N; };
template <int MOST, typename Body> __device__ inline void in_batches(int c, int last, int step, Body body) {
#pragma unroll 1
    for (; c + (MOST - 1) * step < last; c += MOST * step) body(Count<MOST>(), c);
    if (MOST > 4)
#pragma unroll 1
        for (; c + 3 * step < last; c += 4 * step) body(Count<4>(), c);
#pragma unroll 1
    for (; c < last; c += step) body(Count<1>(), c);
}

// Sum over the channel threads of a pixel; every one of them gets it. Called by the whole block.
__device__ wide sum_over_channels(wide value) {
    __shared__ wide cell[MAX_THREADS];
    Tile t;
    __syncthreads();  // the last call's readers are done
    cell[thread_index()] = value;
    __syncthreads();
    wide sum = 0;
#pragma unroll 8
    for (int j = 0; j < t.ct; ++j) sum += cell[LAST ? t.p * t.ct + j : j * t.pt + t.p];
    return sum;
}

__device__ inline wide sum_over_block(wide value) {
    __shared__ wide cell[MAX_THREADS];
    const int tid = thread_index();
    __syncthreads();
    cell[tid] = value;
    __syncthreads();
    for (int half = thread_count() / 2; half > 0; half /= 2) {  // the thread count is a power of two
        if (tid < half) cell[tid] += cell[tid + half];
        __syncthreads();
    }
    return cell[0];
}

// Position of entry e of a filter when the order of (channel, tap) changes from one layout to the other.
__device__ inline i64 reorder(i64 e, i64 channels, i64 taps, bool from_last, bool to_last) {
    if (from_last == to_last) return e;
    const i64 inner = from_last ? channels : taps, outer = quotient(e, inner);
    return (e - outer * inner) * (from_last ? taps : channels) + outer;
}

// body(e, value) for this thread's entries of a filter, in their order. The loads of a batch come before its stores: the
// compiler cannot know that they are of different memory, and would wait for each in turn.
template <typename From, typename Body> __device__ inline void each_entry(const From* from, i64 entries, Body body) {
    constexpr int MOST = 8;
    const int threads = thread_count();
#pragma unroll 1
    for (i64 first = thread_index(); first < entries; first += MOST * threads) {
        const int left = entries - first < MOST * threads ? (int)(entries - first) : MOST * threads;
        const From* at = from + first;
        wide v[MOST];
        for (int u = 0; u < MOST; ++u) v[u] = widen(at[u * threads < left ? u * threads : 0]);
        for (int u = 0; u < MOST; ++u)
            if (u * threads < left) body(first + u * threads, v[u]);
    }
}

template <typename From> __device__ inline wide filter_mean(const From* from, i64 entries) {
    wide sum = 0;
    each_entry(from, entries, [&](i64, wide v) { sum += v; });
    return sum_over_block(sum) / (wide)entries;
}

// A value rounded together with the error that earlier values left behind; leaves its own.
template <typename To> __device__ inline wide round_with(wide value, wide* error, To* to, bool tf32) {
    value += *error;
    narrow(to, value);
    if (tf32) round_to_tf32(to);
    *error = value - widen(*to);
    return value - *error;
}

// W~ = W - mean(W) for one filter. Its entries must sum to zero after rounding too, or the mean of a patch leaks into
// y: a bfloat16 weight minus a small mean would round back to itself. The same goes for float32 where the convolution
// rounds it to TF32: then it is rounded here already. So each thread hands its rounding error on from
// entry to entry, then 16 threads on from thread to thread, and one from those to the end (error diffusion).
__device__ void centre_weight(const w_t* from, c_t* to, i64 entries, i64 channels, bool from_last, bool to_last,
                              bool tf32) {
    __shared__ wide errors[MAX_THREADS], lasts[MAX_THREADS];
    __shared__ i64 places[MAX_THREADS];  // of each thread's last entry
    const int tid = thread_index(), threads = thread_count(), groups = threads < 16 ? threads : 16;
    const i64 taps = entries / channels;
    const wide mean = filter_mean(from, entries);
    wide error = 0, last = 0;
    i64 place = 0;
    each_entry(from, entries, [&](i64 e, wide v) {
        place = reorder(e, channels, taps, from_last, to_last);
        last = round_with(v - mean, &error, to + place, tf32);
    });
    if (sizeof(c_t) > 2 && !tf32) return;
    errors[tid] = error;
    lasts[tid] = last;
    places[tid] = place;
    __syncthreads();
    if (tid < groups) {
        const int size = threads / groups;
        wide handed = 0;
        for (int t = tid * size; t < (tid + 1) * size && t < entries; ++t) {
            handed += errors[t];
            lasts[t] = round_with(lasts[t], &handed, to + places[t], tf32);
        }
        errors[tid * size] = handed;
    }
    __syncthreads();
    if (tid == 0) {
        wide handed = 0;
        for (int t = 0; t < threads && t < entries; t += threads / groups) {
            handed += errors[t];
            round_with(lasts[t], &handed, to + places[t], tf32);
        }
    }
}

// Blocks [0, O): one centred filter each. Blocks [O, O + N G): one pivot each, the mean of up to 4096 values of the
// image and group, taken at multiples of the golden ratio so that no regular pattern of the image is singled out.
__device__ void prepare(const Args& a) {
    const i64 channels = a.channels / a.groups, entries = channels * a.kh * a.kw;
    if (blockIdx.x < a.outputs) {
        if (!a.filters) return;
        centre_weight(a.weight + blockIdx.x * entries, a.filters + blockIdx.x * entries, entries, channels,
                      a.weight_last, a.filters_last, a.tf32);
        return;
    }
    const i64 which = blockIdx.x - a.outputs, n = which / a.groups, g = which % a.groups;
    const i64 area = a.height * a.width, count = channels * area, taken = count < 4096 ? count : 4096;
    wide sum = 0;
#pragma unroll 8
    for (i64 j = thread_index(); j < taken; j += thread_count()) {
        const i64 e = taken == count ? j : (i64)__umul64hi((unsigned long long)j * 0x9E3779B97F4A7C15ull, count);
        const i64 inner = LAST ? channels : area, outer = quotient(e, inner), rest = e - outer * inner;
        sum += widen(a.x[offset(n, g * channels + (LAST ? rest : outer), LAST ? outer : rest, a.channels, area)]);
    }
    wide mean = sum_over_block(sum) / (wide)taken;
    if (!(mean - mean == 0)) mean = 0;  // one infinite pixel must not spoil the whole image
    if (thread_index() == 0) a.pivot[which] = mean;
}

// Which pixel along an axis a place of the padded image mirrors; a place inside is itself.
__device__ inline i64 mirrored(i64 at, i64 size) {
    const i64 i = at < 0 ? -at : at;
    return i < size ? i : 2 * (size - 1) - i;
}

// The padded places of pixel i along an axis: its own (0), where it is mirrored before the image (1) and behind it (2).
// -1 where there is none.
__device__ inline i64 place(int which, i64 i, i64 size, i64 pad) {
    if (which == 0) return i + pad;
    const i64 at = which == 1 ? -i : 2 * (size - 1) - i;
    return (which == 1 ? at < 0 && at >= -pad : at >= size && at < size + pad) ? at + pad : -1;
}

// One read of x: per pixel of the padded image the mean and the sum of squared deviations over the channels (exact
// merging of small two-pass sums, Chan et al. 1979), and where it is wanted the padded copy.
__device__ void pixels(const Args& a) {
    const Tile t;
    const i64 width = a.width + 2 * a.pw, area = (a.height + 2 * a.ph) * width, inner = a.height * a.width;
    const i64 pixel = (i64)blockIdx.x * t.pt + t.p, g = blockIdx.y;
    const int channels = (int)(a.channels / a.groups);
    const bool live = pixel < a.images * area;
    const i64 n = live ? quotient(pixel, area) : 0, at = live ? pixel - n * area : 0;
    const i64 row = quotient(at, width), top = row - a.ph, left = at - row * width - a.pw;
    const i64 y = a.reflect ? mirrored(top, a.height) : top, x = a.reflect ? mirrored(left, a.width) : left;
    const bool inside = live && y >= 0 && y < a.height && x >= 0 && x < a.width;
    const wide pivot = a.pivot[n * a.groups + g];
    const x_t* from = kept(a.x + offset(n, g * channels + t.c, inside ? y * a.width + x : 0, a.channels, inner));
    c_t* to = a.padded + (a.padded ? offset(n, g * channels + t.c, at, a.channels, area) : 0);

    wide count = 0, mean = 0, squares = 0;
    const i64 next_from = kept(ahead(t.ct, inner)), next_to = kept(ahead(t.ct, area));
    in_batches<DEPTH>(t.c, channels, t.ct, [&](auto batch, int) {
        constexpr int N = decltype(batch)::value;
        wide v[N], sum = 0, around = 0;
        for (int u = 0; u < N; ++u, from += next_from) v[u] = inside ? widen(*from) : (wide)0;
        if (HALF && a.padded && live)
            for (int u = 0; u < N; ++u, to += next_to) narrow(to, v[u]);
        for (int u = 0; u < N; ++u) v[u] -= pivot;
        if (!HALF && a.padded && live)
            for (int u = 0; u < N; ++u, to += next_to) narrow(to, v[u]);
        for (int u = 0; u < N; ++u) sum += v[u];
        const wide here = sum * (1 / (wide)N), gap = here - mean, weight = N / (count + N);
        for (int u = 0; u < N; ++u) around += (v[u] - here) * (v[u] - here);
        squares += around + gap * gap * count * weight;
        mean += gap * weight;
        count += N;
    });
    if (!a.pixels) return;
    const wide all = sum_over_channels(count * mean) / (wide)channels;
    squares = sum_over_channels(squares + count * (mean - all) * (mean - all));
    if (live && t.c == 0) {
        wide* out = a.pixels + 2 * ((n * a.groups + g) * area + at);
        out[0] = all;
        out[1] = squares;
    }
}

__device__ inline wide activate(wide v, bool relu, wide slope) {  // slope 1 for none
    const wide below = relu && v == v ? (wide)0 : v * slope;
    return v > 0 ? v : below;
}

// Merges the pixels of every window into mu_p and s_p, then y = act(z / s_p + b) in one pass, in place.
__device__ void scale(const Args& a) {
    const Tile t;
    const i64 area = a.out_height * a.out_width, width = a.width + 2 * a.pw, padded = (a.height + 2 * a.ph) * width;
    const int outputs = (int)(a.outputs / a.groups), chunks = gridDim.y / (int)a.groups;
    const int g = blockIdx.y / chunks, chunk = blockIdx.y % chunks, share = (outputs + chunks - 1) / chunks;
    const i64 pixel = (i64)blockIdx.x * t.pt + t.p;
    const bool live = pixel < a.images * area;
    const i64 n = live ? quotient(pixel, area) : 0, at = live ? pixel - n * area : 0, row = quotient(at, a.out_width);
    const int taps = (int)(a.kh * a.kw), kw = (int)a.kw;
    const wide* window = a.pixels + 2 * ((n * a.groups + g) * padded + row * a.sh * width +
                                         (at - row * a.out_width) * a.sw);

    wide sum = 0, squares = 0;
#pragma unroll 2
    for (int k = t.c; k < taps; k += t.ct) sum += window[2 * (k / kw * a.dh * width + k % kw * a.dw)];
    const wide mu = sum_over_channels(sum) / taps;
#pragma unroll 2
    for (int k = t.c; k < taps; k += t.ct) {
        const wide* one = window + 2 * (k / kw * a.dh * width + k % kw * a.dw);
        squares += one[1] + (wide)(a.channels / a.groups) * (one[0] - mu) * (one[0] - mu);
    }
    const wide std = sqrt(sum_over_channels(squares) / (wide)a.degrees + (wide)a.eps), r = 1 / std;
    if (!live) return;
    if (t.c == 0 && chunk == 0) {
        const i64 out = (n * a.groups + g) * area + at;
        a.mu[out] = mu;
        a.mean[out] = mu + a.pivot[n * a.groups + g];
        a.std[out] = std;
    }
    const int last = (chunk + 1) * share < outputs ? (chunk + 1) * share : outputs;
    c_t* z = a.y + offset(n, g * outputs, at, a.outputs, area);
    const w_t* bias = a.bias ? a.bias + g * outputs : nullptr;
    const bool relu = a.activation == 1;
    const wide slope = a.activation == 2 ? (wide)a.slope : (wide)1;
    const i64 next = ahead(t.ct, area);
    in_batches<DEPTH>(chunk * share + t.c, last, t.ct, [&](auto batch, int c) {
        constexpr int N = decltype(batch)::value;
        c_t* to = z + ahead(c, area);
        wide v[N];
        for (int u = 0; u < N; ++u) v[u] = widen(to[u * next]) * r;
        if (bias)
            for (int u = 0; u < N; ++u) v[u] += widen(bias[c + u * t.ct]);
        for (int u = 0; u < N; ++u) narrow(to + u * next, activate(v[u], relu, slope));
    });
}

// One pass over (dy, y): dz, the projection sum_o(dy z) and with it a and b of every patch, and the bias gradient's
// partial sums. z / s is recovered from y; where the activation is flat its gradient is zero and z is not needed.
__device__ void project(const Args& a) {
    __shared__ wide cell[PAIRS * MAX_THREADS];
    const Tile t;
    const int tid = thread_index(), threads = thread_count();
    const i64 area = a.out_height * a.out_width, g = blockIdx.y;
    const int outputs = (int)(a.outputs / a.groups);
    const w_t* bias = a.bias ? a.bias + g * outputs : nullptr;
    const wide slope = a.activation == 0 ? (wide)1 : a.activation == 1 ? (wide)0 : (wide)a.slope;
    const wide unslope = slope == 0 ? (wide)1 : 1 / slope;
    const i64 next = ahead(t.ct, area);
    const i64 tiles = (a.images * area + t.pt - 1) / t.pt;
#pragma unroll 1
    for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const i64 pixel = tile * t.pt + t.p;
        const bool live = pixel < a.images * area;
        const i64 n = live ? quotient(pixel, area) : 0, at = live ? pixel - n * area : 0;
        const i64 patch = (n * a.groups + g) * area + at, base = offset(n, g * outputs, at, a.outputs, area);
        const wide r = 1 / a.std[patch];
        wide dot = 0;
#pragma unroll 1
        for (int first = 0; a.dy && first < outputs; first += PAIRS * t.ct) {
            const int c = first + t.c;
            const i64 i = base + ahead(c, area);
            const auto one = [&](int u, wide dy, wide y) {
                if (!(y > 0)) dy *= slope, y *= unslope;
                cell[u * threads + tid] = dy;
                dot += dy * (bias ? y - widen(bias[c + u * t.ct]) : y);
                narrow(a.dz + i + u * next, dy * r);
            };
            if (live && c + (PAIRS - 1) * t.ct < outputs) {
                wide dy[PAIRS], y[PAIRS];
                for (int u = 0; u < PAIRS; ++u) dy[u] = widen(a.dy[i + u * next]), y[u] = widen(a.y[i + u * next]);
                for (int u = 0; u < PAIRS; ++u) one(u, dy[u], y[u]);
            } else {
                for (int u = 0; u < PAIRS; ++u) {
                    if (live && c + u * t.ct < outputs)
                        one(u, widen(a.dy[i + u * next]), widen(a.y[i + u * next]));
                    else
                        cell[u * threads + tid] = 0;
                }
            }
            if (!a.partial) continue;
            __syncthreads();
#pragma unroll 1
            for (int own = tid; own < PAIRS * t.ct && first + own < outputs; own += threads) {
                const int u = own / t.ct, c = own & (t.ct - 1);  // ct and pt are powers of two
                wide sum = 0;
#pragma unroll 8
                for (int j = 0; j < t.pt; ++j) {  // each thread starts elsewhere: no two in one memory bank
                    const int p = (j + own) & (t.pt - 1);
                    sum += cell[u * threads + (LAST ? p * t.ct + c : c * t.pt + p)];
                }
                wide* to = a.partial + (i64)blockIdx.x * a.outputs + g * outputs + first + own;
                *to = tile == blockIdx.x ? sum : *to + sum;
            }
            __syncthreads();
        }
        dot = sum_over_channels(dot);
        if (!live || t.c != 0) continue;
        const wide slope = ((a.dstd ? a.dstd[patch] : (wide)0) - r * dot) * r / (wide)a.degrees;
        a.spread[2 * patch] = slope;
        a.spread[2 * patch + 1] = slope * a.mu[patch] - (a.dmean ? a.dmean[patch] / (wide)a.entries : (wide)0);
    }
}

// dx = (the convolution's input gradient) + (x - pivot) A - B; A and B collect a and b of all patches with the pixel.
// With `reflect`, a pixel at the border gathers all three from its mirrored places too: nothing is scattered.
__device__ void collect(const Args& a) {
    const Tile t;
    const i64 area = a.height * a.width;
    const int channels = (int)(a.channels / a.groups), chunks = gridDim.y / (int)a.groups;
    const int g = blockIdx.y / chunks, chunk = blockIdx.y % chunks, share = (channels + chunks - 1) / chunks;
    const i64 pixel = (i64)blockIdx.x * t.pt + t.p;
    const bool live = pixel < a.images * area;
    const i64 n = live ? quotient(pixel, area) : 0, at = live ? pixel - n * area : 0, row = quotient(at, a.width);
    const i64 column = at - row * a.width, below = row + a.ph, right = column + a.pw;
    const wide* patches = a.spread + 2 * (n * a.groups + g) * a.out_height * a.out_width;

    wide sum_a = 0, sum_b = 0;
    const auto add_patches = [&](i64 below, i64 right) {
#pragma unroll 2
        for (int k = t.c; k < (int)(a.kh * a.kw); k += t.ct) {
            const i64 y = below - k / (int)a.kw * a.dh, x = right - k % (int)a.kw * a.dw;
            if (y < 0 || x < 0) continue;
            const i64 i = quotient(y, a.sh), j = quotient(x, a.sw);
            if (i * a.sh != y || j * a.sw != x || i >= a.out_height || j >= a.out_width) continue;
            sum_a += patches[2 * (i * a.out_width + j)];
            sum_b += patches[2 * (i * a.out_width + j) + 1];
        }
    };
    // body(row, column) for the places of the padded image that mirror this pixel
    const auto each_mirrored = [&](auto body) {
        if (!a.reflect) return;
#pragma unroll 1
        for (int which = 1; which < 9; ++which) {
            const i64 y = place(which / 3, row, a.height, a.ph), x = place(which % 3, column, a.width, a.pw);
            if (y >= 0 && x >= 0) body(y, x);
        }
    };
    bool border = false;
    add_patches(below, right);
    each_mirrored([&](i64 y, i64 x) { border = true, add_patches(y, x); });
    sum_a = sum_over_channels(sum_a);
    sum_b = sum_over_channels(sum_b);
    if (!live) return;
    const wide pivot = a.pivot[n * a.groups + g];
    const int last = (chunk + 1) * share < channels ? (chunk + 1) * share : channels;
    const i64 base = offset(n, g * channels, at, a.channels, area);
    const i64 next = ahead(t.ct, area);
    const i64 width = a.reflect ? a.width + 2 * a.pw : a.width;
    const i64 from_area = a.reflect ? (a.height + 2 * a.ph) * width : area, next_from = ahead(t.ct, from_area);
    const i64 own = offset(n, g * channels, a.reflect ? below * width + right : at, a.channels, from_area);
    in_batches<PAIRS>(chunk * share + t.c, last, t.ct, [&](auto batch, int c) {
        constexpr int N = decltype(batch)::value;
        const i64 i = base + ahead(c, area);
        wide v[N];
        for (int u = 0; u < N; ++u) v[u] = (widen(a.x[i + u * next]) - pivot) * sum_a - sum_b;
        if (a.dinput) {
            const c_t* from = a.dinput + own + ahead(c, from_area);
            for (int u = 0; u < N; ++u) v[u] += widen(from[u * next_from]);
        }
        if (a.dinput && border)
            each_mirrored([&](i64 y, i64 x) {
                const c_t* from = a.dinput + offset(n, g * channels + c, y * width + x, a.channels, from_area);
                for (int u = 0; u < N; ++u) v[u] += widen(from[u * next_from]);
            });
        for (int u = 0; u < N; ++u) narrow(a.dx + i + u * next, v[u]);
    });
}

// Block o: the weight gradient of filter o, centred, and the bias gradient from its partial sums.
__device__ inline void finish(const Args& a) {
    const i64 channels = a.channels / a.groups, entries = channels * a.kh * a.kw, o = blockIdx.x;
    if (a.dweight) {
        const c_t* from = a.dfilters + o * entries;
        const wide mean = filter_mean(from, entries);
        each_entry(from, entries, [&](i64 e, wide v) {
            const i64 at = reorder(e, channels, a.kh * a.kw, a.filters_last, a.weight_last);
            narrow(a.dweight + o * entries + at, v - mean);
        });
    }
    if (!a.dbias) return;
    wide sum = 0;
#pragma unroll 4
    for (i64 b = thread_index(); b < a.blocks; b += thread_count()) sum += a.partial[b * a.outputs + o];
    sum = sum_over_block(sum);
    if (thread_index() == 0) narrow(a.dbias + o, sum);
}

#define ENTRY(name) \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS, BLOCKS) nc_##name(const __grid_constant__ Args a) { \
        name(a);                                                                                                  \
    }
ENTRY(prepare)
ENTRY(pixels)
ENTRY(scale)
ENTRY(project)
ENTRY(collect)
ENTRY(finish)
