// All six kernels on made-up tensors, every CUDA thread a thread of this machine and two blocks at a time: what the
// fibers of run.cc cannot show. Built with ThreadSanitizer it reports accesses that no barrier orders, within a block
// and between blocks; with AddressSanitizer and UndefinedBehaviorSanitizer every access outside a tensor, at an
// address that its type does not divide, or reached by an overflow. Outputs start as NaN and must end without one.
//
// Standard input: the grid and block of each kernel, what is there (bias, copy of x), the argument block without
// pointers. The second copy of the source gives the second block shared memory of its own.
#define PER_THREAD thread_local
#include "shim.h"
#include <cstdio>
#include <memory>
#include <pthread.h>
#include <thread>
#include <vector>

namespace even {
#include KERNEL_SOURCE
}
#define nc_prepare odd_prepare
#define nc_pixels odd_pixels
#define nc_scale odd_scale
#define nc_project odd_project
#define nc_collect odd_collect
#define nc_finish odd_finish
namespace odd {
#include KERNEL_SOURCE
}
#undef nc_prepare
#undef nc_pixels
#undef nc_scale
#undef nc_project
#undef nc_collect
#undef nc_finish

using namespace even;

enum Kernel { PREPARE, PIXELS, SCALE, PROJECT, COLLECT, FINISH, KERNELS };
struct Shape { int grid[2], block[2]; };
static struct { Shape shapes[KERNELS]; int bias, copies; } task;
static pthread_barrier_t barriers[2];
static thread_local int slot;

static void wait_for_block() { pthread_barrier_wait(&barriers[slot]); }

static void call(int kernel, const Args& a) {
    odd::Args b;
    memcpy((void*)&b, &a, sizeof a);
    void (*const first[])(const even::Args) = {even::nc_prepare, even::nc_pixels,  even::nc_scale,
                                               even::nc_project, even::nc_collect, even::nc_finish};
    void (*const second[])(const odd::Args) = {odd::odd_prepare, odd::odd_pixels,  odd::odd_scale,
                                               odd::odd_project, odd::odd_collect, odd::odd_finish};
    slot ? second[kernel](b) : first[kernel](a);
}

static void thread(int kernel, Args a, unsigned which, unsigned tid) {
    const Shape& s = task.shapes[kernel];
    slot = which;
    gridDim = {(unsigned)s.grid[0], (unsigned)s.grid[1], 1};
    blockDim = {(unsigned)s.block[0], (unsigned)s.block[1], 1};
    threadIdx = {tid % blockDim.x, tid / blockDim.x, 0};
    for (unsigned b = 0; b < gridDim.x * gridDim.y; ++b) {
        blockIdx = {b % gridDim.x, b / gridDim.x, 0};
        if ((blockIdx.x + blockIdx.y) % 2 != which) continue;  // neighbours along both axes meet each other
        call(kernel, a);
        wait_for_block();  // only because the next block takes over the shared memory
    }
}

static void launch(int kernel, const Args& a) {
    const int threads = task.shapes[kernel].block[0] * task.shapes[kernel].block[1];
    for (auto& barrier : barriers) pthread_barrier_init(&barrier, nullptr, threads);
    std::vector<std::thread> all;
    for (int i = 0; i < 2 * threads; ++i) all.emplace_back(thread, kernel, a, i % 2, i / 2);
    for (auto& one : all) one.join();
    for (auto& barrier : barriers) pthread_barrier_destroy(&barrier);
}

// Tensors lie where a slice may: aligned to their type and no better.
static std::vector<std::unique_ptr<char[]>> memory;
template <typename T> T* tensor(i64 count) {
    memory.emplace_back(new char[(count + 1) * sizeof(T)]);
    T* values = (T*)memory.back().get() + 1;
    memset((void*)values, 0xff, count * sizeof(T));  // NaN in each of the types
    return values;
}
template <typename T> T* random_tensor(i64 count) {
    T* values = tensor<T>(count);
    for (i64 i = 0; i < count; ++i) narrow(values + i, (wide)(rand() % 2001 - 1000) / 500);
    return values;
}
static int spoilt = 0;
template <typename T> void check(const char* name, const T* values, i64 count) {
    i64 missing = 0;
    for (i64 i = 0; i < count; ++i) missing += widen(values[i]) != widen(values[i]);
    if (missing) fprintf(stderr, "%s: %lld of %lld values are NaN\n", name, missing, count), spoilt = 1;
}

int main() {
    Args a;
    if (fread(&task, sizeof task, 1, stdin) != 1 || fread((void*)&a, sizeof a, 1, stdin) != 1) return 3;
    const i64 padded = (a.height + 2 * a.ph) * (a.width + 2 * a.pw), area = a.out_height * a.out_width;
    const i64 x = a.images * a.channels * a.height * a.width, y = a.images * a.outputs * area;
    const i64 maps = a.images * a.groups, weight = a.outputs * (a.channels / a.groups) * a.kh * a.kw;
    const i64 copy = a.images * a.channels * padded;

    a.x = random_tensor<x_t>(x), a.weight = random_tensor<w_t>(weight);
    a.bias = task.bias ? random_tensor<w_t>(a.outputs) : nullptr;
    a.filters = tensor<c_t>(weight), a.pivot = tensor<wide>(maps);
    launch(PREPARE, a);
    check("filters", a.filters, weight), check("pivot", a.pivot, maps);

    a.padded = task.copies ? tensor<c_t>(copy) : nullptr, a.pixels = tensor<wide>(2 * maps * padded);
    launch(PIXELS, a);
    if (a.padded) check("padded", a.padded, copy);
    check("pixels", a.pixels, 2 * maps * padded);

    a.y = random_tensor<c_t>(y), a.mu = tensor<wide>(maps * area);
    a.mean = tensor<wide>(maps * area), a.std = tensor<wide>(maps * area);
    launch(SCALE, a);
    check("y", a.y, y), check("mu", a.mu, maps * area);
    check("mean", a.mean, maps * area), check("std", a.std, maps * area);

    a.dy = random_tensor<c_t>(y), a.dmean = random_tensor<wide>(maps * area), a.dstd = random_tensor<wide>(maps * area);
    a.dz = tensor<c_t>(y), a.spread = tensor<wide>(2 * maps * area), a.partial = tensor<wide>(a.blocks * a.outputs);
    launch(PROJECT, a);
    check("dz", a.dz, y), check("spread", a.spread, 2 * maps * area), check("partial", a.partial, a.blocks * a.outputs);

    a.dinput = random_tensor<c_t>(a.reflect ? copy : x);
    a.dx = sizeof(x_t) == sizeof(c_t) && !a.reflect ? (x_t*)a.dinput : tensor<x_t>(x);
    launch(COLLECT, a);
    check("dx", a.dx, x);

    const bool in_place = sizeof(w_t) == sizeof(c_t) && a.weight_last == a.filters_last;
    a.dfilters = random_tensor<c_t>(weight);
    a.dweight = in_place ? (w_t*)a.dfilters : tensor<w_t>(weight), a.dbias = tensor<w_t>(a.outputs);
    launch(FINISH, a);
    check("dweight", a.dweight, weight), check("dbias", a.dbias, a.outputs);
    return spoilt;
}
