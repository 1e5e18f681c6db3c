//! Messages of libtorch that say that memory is not enough, and what they tell about it.

use crate::memory::{in_words, MemoryInfo};

/// Parts of such messages: of the allocators of CUDA, of the CPU (Linux, then Windows and macOS) and of other devices,
/// of CUDA's runtime and driver, of cuBLAS, cuDNN and their like, and of C++.
const SIGNS: [&str; 6] = [
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "STATUS_ALLOC_FAILED",
    "std::bad_alloc",
];

const CURE: &str =
    "Use smaller batches, with `Optimizer::set_accumulation` for the same update, or block \
    checkpointing (`recompute::Recompute`). What was accumulated is kept";

/// The message of an error if memory is not enough: what was asked for, is free and is there, and the cure.
pub(super) fn explained(message: &str) -> Option<String> {
    SIGNS.iter().find(|sign| message.contains(**sign))?;
    let asked = between(message, "ried to allocate ", &[". ", " memory.", "\n"]);
    let Some(asked) = asked else {
        // One of a library, such as cuBLAS, which does not say how much.
        let first = message.lines().next().unwrap_or_default();
        return Some(format!("memory is not enough: {first}. {CURE}"));
    };
    // The CPU's allocator counts in bytes, CUDA's in words.
    let wanted = in_bytes(asked);
    let asked = wanted.map_or(asked.to_owned(), in_words);
    let place = between(message, "\nGPU ", &[" has"]).or(between(message, ". GPU ", &[" has"]));
    let on = place.map_or(String::new(), |index| format!(" on cuda:{index}"));
    let total = between(message, "total capacity of ", &[" of which"]);
    let free = between(message, "of which ", &[" is free"]);
    let there = match (free, total) {
        (Some(free), Some(total)) => format!(", where {free} are free of {total}"),
        _ if message.contains("CPUAllocator") => {
            let host = MemoryInfo::of_host();
            host.map_or(String::new(), |host| format!(" of the machine, where there is {host}"))
        }
        _ => String::new(),
    };
    let kept = between(message, "PyTorch, and ", &[" is reserved"]);
    let kept = kept.filter(|kept| wanted.is_some_and(|wanted| in_bytes(kept) >= Some(wanted)));
    let kept = kept.map_or(String::new(), |kept| {
        format!(
            " libtorch keeps {kept} in pieces that are too small: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True \
             joins them."
        )
    });
    Some(format!("memory is not enough: {asked} were asked for{on}{there}.{kept} {CURE}"))
}

/// The number of bytes of `20.50 MiB`.
fn in_bytes(words: &str) -> Option<u64> {
    let (number, unit) = words.split_once(' ')?;
    let unit = match unit {
        "bytes" => 1.,
        "KiB" => 1024.,
        "MiB" => 1024_f64.powi(2),
        "GiB" => 1024_f64.powi(3),
        _ => return None,
    };
    Some((number.parse::<f64>().ok()? * unit) as u64)
}

/// The text after `start`, up to the first of `ends` that follows.
fn between<'a>(text: &'a str, start: &str, ends: &[&str]) -> Option<&'a str> {
    let rest = &text[text.find(start)? + start.len()..];
    let end = ends.iter().filter_map(|end| rest.find(end)).min()?;
    Some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_cuda_tells_what_was_asked_for_is_free_and_is_there() {
        let message = "CUDA out of memory. Tried to allocate 20.50 MiB. GPU 1 has a total capacity of 79.15 GiB of \
            which 1.25 GiB is free. Process 7 has 77.90 GiB memory in use. Of the allocated memory 70.00 GiB is \
            allocated by PyTorch, and 6.50 GiB is reserved by PyTorch but unallocated. If reserved but …";
        assert_eq!(
            explained(message).unwrap(),
            format!(
                "memory is not enough: 20.50 MiB were asked for on cuda:1, where 1.25 GiB are free of 79.15 GiB. \
                 libtorch keeps 6.50 GiB in pieces that are too small: \
                 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True joins them. {CURE}"
            )
        );
        let small = message.replace("6.50 GiB", "20.00 MiB");
        assert!(explained(&small).unwrap().contains("free of 79.15 GiB. Use smaller batches"));
        let huge = "CUDA out of memory. Tried to allocate more than 1EB memory.";
        assert!(explained(huge).unwrap().contains("more than 1EB were asked for. Use"));
    }

    #[test]
    fn every_library_that_lacks_memory_is_understood_and_nothing_else() {
        for message in [
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to \
             allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)\n",
            "DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes.",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
            "CUDA driver error: out of memory",
            "MPS backend out of memory (MPS allocated: 1 GB)",
            "unable to mmap 64 bytes from file <x>: Cannot allocate memory (12)",
            "std::bad_alloc",
        ] {
            let shown = explained(message).unwrap();
            assert!(shown.starts_with("memory is not enough: ") && shown.ends_with(CURE), "{shown}");
            assert!(!shown.contains('\n'), "{shown}");
        }
        for message in ["", "CUDA error: an illegal memory access", "Tried to allocate a name", "é"]
        {
            assert_eq!(explained(message), None);
        }
    }

    #[test]
    fn the_message_of_the_cpu_tells_the_machines_memory() {
        let shown = explained(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to \
             allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)",
        );
        let shown = shown.unwrap();
        assert!(shown.contains("4194304.00 GiB were asked for"), "{shown}");
        #[cfg(target_os = "linux")]
        assert!(
            shown.contains("of the machine, where there is ") && shown.contains(" free of "),
            "{shown}"
        );
    }
}
