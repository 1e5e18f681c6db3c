//! Numbers of operations that take memory go through `src/kernels/number.rs`: tch's own panic where memory lacks.

use std::path::{Path, PathBuf};

/// Calls of tch that free a number before they look for an error. Those in place take no memory.
const PANIC: [&str; 25] = [
    "f_mul_scalar(",
    "f_div_scalar(",
    "f_add_scalar(",
    "f_sub_scalar(",
    "f_masked_fill(",
    "f_clamp(",
    "f_baddbmm(",
    "f_arange(",
    "f_arange_start(",
    "f_eq(",
    "f_ne(",
    "f_lt(",
    "f_gt(",
    "f_ge(",
    "f_le(",
    "f_clamp_min(",
    "f_clamp_max(",
    "f_pow_scalar(",
    "f_pow_tensor_scalar(",
    "f_full(",
    "f_full_like(",
    "f_index_fill(",
    "f_arange_start_step(",
    "f_scalar_tensor(",
    "f_norm_scalaropt_dim(",
];

fn calls(text: &str) -> Vec<&str> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    PANIC.into_iter().filter(|call| code.contains(call)).collect()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn a_pass_makes_no_tensors_of_numbers_that_a_trace_would_take_for_zeros() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut all) = (Vec::new(), 0);
    for room in ["models", "autograd", "kernels", "quantised", "device"] {
        for path in sources(&src.join(room)) {
            let text = std::fs::read_to_string(&path).unwrap();
            all += 1;
            let of_tests = path.to_string_lossy().contains("_tests/");
            if !of_tests && !path.ends_with("device/trace.rs") && makes_numbers(&text) {
                found.push(path);
            }
        }
    }
    assert!(found.is_empty() && all > 60, "{found:?}: use `sent_numbers` of src/device/trace.rs");
    assert!(makes_numbers("let x = Tensor::f_from_slice(&numbers)?;"));
    assert!(!makes_numbers("/// let x = Tensor::from_slice(&[1]);"));
}

/// True for code that is neither documentation nor a test.
fn makes_numbers(text: &str) -> bool {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.any(|line| {
        ["f_from_slice(", "from_slice(&", "f_from_data_size("]
            .iter()
            .any(|call| line.contains(call))
    })
}

#[test]
fn no_operation_that_takes_memory_panics_over_a_number() {
    // Tables of a few numbers, on the host, once per model.
    let small = ["models/decoder/rope_types.rs", "kernels/number.rs"];
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let all = sources(&src);
    assert!(all.len() > 60);
    for path in all.iter().filter(|path| !small.iter().any(|end| path.ends_with(end))) {
        let text = std::fs::read_to_string(path).unwrap();
        let found = calls(&text);
        assert!(found.is_empty(), "{}: {found:?}: see kernels/number.rs", path.display());
    }
    assert_eq!(calls("let y = x.f_mul_scalar(2.)?;"), ["f_mul_scalar("]);
    assert_eq!(calls("x.f_mul_scalar_(2.)?;"), [""; 0]);
}
