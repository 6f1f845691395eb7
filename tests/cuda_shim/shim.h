// Runs the CUDA kernels of cuda_ops/kernels.cu on a CPU, block after block; the threads of a block are fibers that
// switch at __syncthreads(). Each of them may come first: run() takes the order, and a missing barrier shows as a
// difference between two orders.
#pragma once
#define HOST_SHIM
#include <cmath>
#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // the blocks run one after another

#ifndef PER_THREAD  // threads.cc has threads of its own where run.cc has fibers
#define PER_THREAD
#endif
struct Index { unsigned x, y, z; };
static PER_THREAD Index threadIdx, blockIdx, blockDim, gridDim;
__attribute__((noinline)) static void wait_for_block();
#define __syncthreads() wait_for_block()

using std::sqrt;
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
template <typename T> static inline T kept(T value) { return value; }
static inline float half_to_float(unsigned short h) {
    const int exponent = (h >> 10) & 31, fraction = h & 1023;
    float f = exponent == 31 ? (fraction ? NAN : INFINITY)
              : exponent     ? std::ldexp(1024.0f + fraction, exponent - 25)
                             : std::ldexp((float)fraction, -24);
    return h & 0x8000 ? -f : f;
}
static inline unsigned short float_to_half(float f) {  // to the nearest, ties to even
    const unsigned short sign = std::signbit(f) ? 0x8000 : 0;
    const float a = std::fabs(f);
    if (a != a) return 0x7e00;
    if (a >= 65520.0f) return sign | 0x7c00;
    int exponent;
    std::frexp(a, &exponent);                      // a = [0.5, 1) 2^exponent
    if (exponent < -13) exponent = -13;            // subnormal: the quantum is 2^-24
    const int steps = (int)std::nearbyint(std::ldexp(a, 11 - exponent));  // 1024 to 2048, below it subnormal
    return sign | (unsigned short)(steps < 1024 ? steps : ((exponent + 13) << 10) + steps);
}
