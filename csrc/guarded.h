// The border to C: a function returns null, or a message that the caller frees with `free`; no exception leaves it.
#pragma once

#include <c10/util/Exception.h>

#include <cstring>
#include <exception>

namespace ln_tuning {
namespace {

template <class Work>
char* guarded(const Work& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception without a message");
  }
}

}  // namespace
}  // namespace ln_tuning
