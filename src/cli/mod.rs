//! The command line: parses, calls the library, prints.
//!
//! Progress goes to stderr, results to stdout. Exit codes: 0 fine, 2 the user's input is wrong, 1 a failure at run
//! time.

mod args;
mod bench;
mod demo;
mod engine;
mod eval;
mod inspect;
mod interrupt;
mod output;
mod sets;
mod step;
mod train;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Trains and runs GPT models on sequences split over ranks; the way of splitting is a type.
///
/// Without a command it runs the demo.
#[derive(Parser)]
#[command(name = "context-parallel", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: demo::Arguments,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Train(train::Arguments),
    Eval(eval::Arguments),
    Verify(verify::Arguments),
    Inspect(inspect::Arguments),
    Bench(bench::Arguments),
}

/// Runs the program; its arguments come from the environment.
pub fn main() -> ExitCode {
    let Cli { command, demo } = Cli::parse();
    let result = match command.unwrap_or(Command::Demo(demo)) {
        Command::Demo(arguments) => demo::run(arguments),
        Command::Train(arguments) => train::run(arguments),
        Command::Eval(arguments) => eval::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::from(if error.is_input() { 2 } else { 1 })
        }
    }
}
