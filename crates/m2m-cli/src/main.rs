//! The command line of m2m: `m2m --help` lists its verbs.
//!
//! Data goes to stdout, words to stderr; `exit` lists the exit codes. No protocol rule lives here: the crate `m2m`
//! has them, and this turns flags into its calls and its answers into lines.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod config;
mod exit;
mod nets;
mod output;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Verb};
use crate::output::Output;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return exit::of_usage(&error),
    };
    let mut output = Output::new(&args.globals);
    // The demo provokes what the log warns of.
    output::start_log(&args.globals, matches!(args.verb, Verb::Demo));
    match commands::run(args, &mut output) {
        Ok(code) => code.into(),
        Err(failure) => output.failure(&failure).into(),
    }
}
