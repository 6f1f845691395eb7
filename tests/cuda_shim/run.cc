// The kernels, and the loop that runs a grid of blocks of fibers. Compiled with the same -D definitions as for a GPU.
#include "shim.h"
#include KERNEL_SOURCE

namespace {
constexpr int STACK = 64 * 1024;
jmp_buf scheduler, fibers[MAX_THREADS];
ucontext_t origin;
bool started[MAX_THREADS], waiting[MAX_THREADS], finished[MAX_THREADS];
int current;
void (*kernel)(const Args);
const Args* arguments;

void set_thread(int i) { threadIdx = {i % blockDim.x, i / blockDim.x, 0}; }

// A fiber lives on and runs its thread of every block; makecontext is needed once, the cheap longjmp afterwards.
void fiber() {
    for (;;) {
        kernel(*arguments);
        finished[current] = true;
        if (!_setjmp(fibers[current])) _longjmp(scheduler, 1);
    }
}

void resume(int i) {
    current = i;
    set_thread(i);
    if (_setjmp(scheduler)) return;
    if (started[i]) _longjmp(fibers[i], 1);
    started[i] = true;
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = malloc(STACK);
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, fiber, 0);
    swapcontext(&origin, &context);
}
}  // namespace

static void wait_for_block() {
    waiting[current] = true;
    if (!_setjmp(fibers[current])) _longjmp(scheduler, 1);
}

extern "C" int args_bytes() { return sizeof(Args); }

// order: the thread that goes first, and the odd step to the next one. 0, or 1 where some threads of a block reached
// a barrier that others never came to.
extern "C" int run(int which, const int* grid, const int* block, const Args* a, int first, int stride) {
    void (*const kernels[])(const Args) = {nc_prepare, nc_pixels, nc_scale, nc_project, nc_collect, nc_finish};
    kernel = kernels[which];
    arguments = a;
    gridDim = {(unsigned)grid[0], (unsigned)grid[1], 1};
    blockDim = {(unsigned)block[0], (unsigned)block[1], 1};
    const int threads = block[0] * block[1];
    for (unsigned y = 0; y < gridDim.y; ++y)
        for (unsigned x = 0; x < gridDim.x; ++x) {
            blockIdx = {x, y, 0};
            memset(finished, 0, sizeof finished);
            for (int left = threads; left > 0;) {
                memset(waiting, 0, sizeof waiting);
                int held = 0;
                for (int i = 0; i < threads; ++i) {
                    const int t = (first + i * stride) % threads;
                    if (finished[t]) continue;
                    resume(t);
                    finished[t] ? --left : ++held;
                }
                if (held && held != threads) return 1;  // strict: a barrier is for the whole block
            }
        }
    return 0;
}
