// What a CPU build of PyTorch lacks before autograd works on tensors that say they are on "cuda": a device guard, and
// hooks that say that there is CUDA. Nothing computes here: eight devices, with streams and events that do nothing.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

namespace {

using Guard = c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>;
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct CUDAHooks final : public at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return c10::impl::kFakeGuardImplMaxDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return Guard::getDeviceIndex(); }
  c10::DeviceIndex current_device() const override { return Guard::getDeviceIndex(); }
  int getNumGPUs() const override { return c10::impl::kFakeGuardImplMaxDevices; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

} // namespace

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)
}

namespace c10d {
namespace {
// DistributedDataParallel asks for one per kind of device.
struct NoTimer final : public Timer {
  explicit NoTimer(c10::Device) {}
  std::optional<int64_t> measureDifference(Event, Event) override { return std::nullopt; }
};
C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kCUDA, NoTimer)
} // namespace
} // namespace c10d

extern "C" void rehearsal_set_device(int index) { Guard::setDeviceIndex(static_cast<c10::DeviceIndex>(index)); }
extern "C" int rehearsal_device() { return Guard::getDeviceIndex(); }
