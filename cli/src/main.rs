//! The program `ln-tuning`.

mod end;

fn main() {
    // `ln-tuning … | head` ends quietly, as other programs do.
    sigpipe::reset();
    end::with(ln_tuning_cli::main())
}
