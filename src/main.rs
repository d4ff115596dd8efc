//! The `bifrons` binary.

fn main() -> std::process::ExitCode {
    bifrons::cli::main()
}
