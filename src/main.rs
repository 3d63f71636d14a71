//! The `context-parallel` program: see [`cli`].

// Loom explores the in-process engine alone, and tests build programs with them.
#[cfg(not(loom))]
mod cli;

#[cfg(not(loom))]
fn main() -> std::process::ExitCode {
    cli::main()
}

#[cfg(loom)]
fn main() {}
