//! Errors in one line.

use crate::records::shortened;

/// The error and its causes, without the frames of C++ that libtorch adds, and without the end of what is very long: a
/// file's text may be in it.
pub fn one_line(error: &anyhow::Error) -> String {
    const MOST: usize = 2000;
    let causes = error.chain().map(|cause| {
        let text = cause.to_string();
        let text = text.split("\nException raised from").next().unwrap_or(&text);
        let text = text.split('\n').map(str::trim).collect::<Vec<_>>().join(" ");
        shortened(text.trim(), MOST).into_owned()
    });
    causes.collect::<Vec<_>>().join(": ")
}
