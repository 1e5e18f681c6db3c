//! The program `ln-tuning`.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod end;

fn main() -> std::process::ExitCode {
    // `ln-tuning … | head` ends quietly, as other programs do.
    sigpipe::reset();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    end::at_once();
    ln_tuning_cli::main()
}
