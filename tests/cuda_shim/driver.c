// A stand-in for libcuda.so.1: enough of the driver for cuda-bindings to load a module and launch kernels, which it
// only writes down. fake_launches() returns how many there were; the last one's shape, stream and first field follow.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

static unsigned launches, shape[6];
static uint64_t stream, function, field;
static int failure, refusal;

static int nothing(void) { return 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)(uintptr_t)(0x77 + device), 0; }
int cuCtxSetCurrent(void* context) { return context == (void*)0x77 ? 0 : 201; }
int cuModuleLoadData(void** module, const void* image) {
    if (refusal) return refusal;
    return *module = (void*)(uintptr_t)(image != 0), 0;
}
int cuModuleGetFunction(void** f, void* module, const char* name) { return *f = (void*)(uintptr_t)name[3], 0; }
int cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* on, void** parameters, void** extra) {
    if (failure) {
        const int status = failure;
        failure = 0;
        return status;
    }
    const unsigned now[6] = {gx, gy, gz, bx, by, bz};
    memcpy(shape, now, sizeof now);
    memcpy(&field, parameters[0], sizeof field);
    stream = (uintptr_t)on, function = (uintptr_t)f, ++launches;
    return shared || extra;
}

void fake_fail(int status) { failure = status; }
void fake_refuse(int status) { refusal = status; }
unsigned fake_launches(uint64_t* out) {
    for (int i = 0; i < 6; ++i) out[i] = shape[i];
    out[6] = stream, out[7] = function, out[8] = field;
    return launches;
}

int cuGetProcAddress_v2(const char* name, void** f, int version, uint64_t flags, int* status) {
    Dl_info self;
    dladdr((void*)cuLaunchKernel, &self);
    *f = dlsym(dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD), name);
    if (!*f) *f = (void*)nothing;
    if (status) *status = 0;
    return 0;
}
int cuGetProcAddress(const char* name, void** f, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, f, version, flags, 0);
}
