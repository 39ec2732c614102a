// A libcuda.so.1 for tests without a driver: cuDNN wants one before it makes a plan, even for a device that it is
// only described. Everything succeeds and does nothing, but cuInit: there is no device.
static int object;
static int Give(void** to) {
  *to = &object;
  return 0;
}
static int GiveInt(int* to, int value) {
  *to = value;
  return 0;
}
static int GiveText(const char** to) {
  *to = "the driver's stand-in";
  return 0;
}

int cuInit(unsigned flags) { return 100; }  // CUDA_ERROR_NO_DEVICE
int cuDriverGetVersion(int* version) { return GiveInt(version, 13000); }
int cuDeviceGetCount(int* count) { return GiveInt(count, 0); }
int cuDeviceGet(int* device) { return GiveInt(device, 0); }
int cuCtxGetDevice(int* device) { return GiveInt(device, 0); }
int cuFuncGetAttribute(int* value) { return GiveInt(value, 0); }
int cuKernelGetAttribute(int* value) { return GiveInt(value, 0); }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks) { return GiveInt(blocks, 1); }
int cuOccupancyMaxPotentialClusterSize(int* size) { return GiveInt(size, 8); }
int cuGetErrorString(int error, const char** text) { return GiveText(text); }
int cuGetErrorName(int error, const char** text) { return GiveText(text); }
int cuCtxGetCurrent(void** context) { return Give(context); }
int cuLibraryLoadData(void** library) { return Give(library); }
int cuKernelGetFunction(void** function) { return Give(function); }
int cuLibraryGetKernel(void** kernel) { return Give(kernel); }
int cuModuleLoadData(void** module) { return Give(module); }
int cuModuleLoadDataEx(void** module) { return Give(module); }
int cuModuleGetFunction(void** function) { return Give(function); }

#define NOTHING(name) \
  int name(void) { return 0; }
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxPopCurrent)
NOTHING(cuCtxPushCurrent)
NOTHING(cuDeviceGetAttribute)
NOTHING(cuDevicePrimaryCtxRelease)
NOTHING(cuDevicePrimaryCtxReset)
NOTHING(cuDevicePrimaryCtxRetain)
NOTHING(cuFuncSetAttribute)
NOTHING(cuKernelSetAttribute)
NOTHING(cuLaunchCooperativeKernel)
NOTHING(cuLaunchKernel)
NOTHING(cuLaunchKernelEx)
NOTHING(cuLibraryLoadFromFile)
NOTHING(cuLibraryUnload)
NOTHING(cuLinkAddData)
NOTHING(cuLinkAddData_v2)
NOTHING(cuLinkAddFile_v2)
NOTHING(cuLinkComplete)
NOTHING(cuLinkCreate)
NOTHING(cuLinkCreate_v2)
NOTHING(cuLinkDestroy)
NOTHING(cuMemcpyDtoH_v2)
NOTHING(cuModuleGetGlobal_v2)
NOTHING(cuModuleLoadFatBinary)
NOTHING(cuModuleUnload)
NOTHING(cuStreamGetCtx)
NOTHING(cuStreamSynchronize)
NOTHING(cuTensorMapEncodeTiled)
