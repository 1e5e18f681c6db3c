//! The program `ln-tuning`.

fn main() -> std::process::ExitCode {
    // `ln-tuning … | head` ends quietly, as other programs do.
    sigpipe::reset();
    ln_tuning_cli::main()
}
