//! The command line: parses, calls the library, prints.
//!
//! Progress goes to stderr, results to stdout. Exit codes: 0 fine, 2 the user's input is wrong, 1 a failure at run
//! time.

mod args;
mod bench;
mod demo;
mod engine;
mod eval;
mod inputs;
mod inspect;
mod interrupt;
mod machine;
mod memory;
mod model;
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
    let command = command.unwrap_or(Command::Demo(demo));
    let engine = match &command {
        Command::Train(arguments) => arguments.choices.engine.clone(),
        Command::Eval(arguments) => arguments.choices.engine.clone(),
        Command::Verify(arguments) => arguments.engine.clone(),
        Command::Demo(_) | Command::Bench(_) | Command::Inspect(_) => args::Engine::default(),
    };
    engine::start(&engine, |cluster| match command {
        Command::Demo(arguments) => demo::run(arguments, cluster),
        Command::Train(arguments) => train::run(arguments, cluster),
        Command::Eval(arguments) => eval::run(arguments, cluster),
        Command::Verify(arguments) => verify::run(arguments, cluster),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Bench(arguments) => bench::run(arguments, cluster),
    })
}
