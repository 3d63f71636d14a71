//! The `context-parallel` program: see [`cli`].

// What a user can give the program ends in an error, not in a panic; tests may be shorter.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
