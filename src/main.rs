//! The `unforget` program: arguments in, a library call, a result out. See `unforget --help`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
