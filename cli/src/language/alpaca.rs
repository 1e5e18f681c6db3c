//! The text that an instruction becomes, as Stanford's Alpaca was trained with it.

/// The prompt, up to where the answer begins. A system message takes the place of the first sentences.
pub fn prompt(instruction: &str, input: &str, system: &str) -> String {
    let begin = match (system, input) {
        ("", "") => {
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        }
        ("", _) => {
            "Below is an instruction that describes a task, paired with an input that provides further context. Write \
             a response that appropriately completes the request."
        }
        (system, _) => system,
    };
    let input = if input.is_empty() { String::new() } else { format!("### Input:\n{input}\n\n") };
    format!("{begin}\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n")
}
