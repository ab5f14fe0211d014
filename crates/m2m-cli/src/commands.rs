//! The verbs, and what they share: reading the settings, the event loop, the signals that end a program.
pub(crate) mod bench;
mod claims;
mod counters;
mod demo;
mod id;
mod key;
mod keygen;
mod node;
mod online;
mod ping;
mod request;
mod send;
mod server;
mod stop;

use clap::CommandFactory;
use m2m_proto::coap::code::Code;

use crate::args::{Args, RequestWithPayload, Server, ServerTask, Verb};
use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Does what the command line says.
///
/// # Errors
/// Whatever kept the verb from its work.
pub(crate) fn run(args: Args, output: &mut Output) -> Result<Exit, Failure> {
    // Two that work whatever the configuration says, and one that has no use for this event loop.
    match &args.verb {
        Verb::Completions(completions) => return print_completions(completions.shell, *output),
        Verb::Man => return print_manual(*output),
        Verb::Bench(bench) => return bench::run(|| Settings::load(&args.globals), output, bench),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("can't start the event loop: {error}")))?;
    let done = runtime.block_on(dispatch(args, output));
    // A thread may still wait for a line of stdin.
    runtime.shutdown_background();
    done
}

async fn dispatch(args: Args, output: &mut Output) -> Result<Exit, Failure> {
    if matches!(args.verb, Verb::Demo) {
        return demo::run(*output).await;
    }
    let settings = Settings::load(&args.globals)?;
    if settings.json {
        output.use_json();
    }
    let (settings, output) = (&settings, *output);
    let bare = |request| RequestWithPayload { request, payload: None, data: None, file: None, format: None };
    match args.verb {
        Verb::Keygen(keygen) => keygen::run(settings, output, &keygen),
        Verb::Key(task) => key::run(settings, output, &task).await,
        Verb::Id => id::run(settings, output),
        Verb::Server(Server { task: Some(ServerTask::Claims(task)), .. }) => {
            claims::run(settings, output, &task)
        }
        Verb::Server(server) => server::run(settings, output, &server).await,
        Verb::Node(node) => node::run(settings, output, node).await,
        Verb::Send(send) => send::run(settings, output, &send).await,
        Verb::Get(request) => request::run(settings, output, Code::GET, &bare(request)).await,
        Verb::Post(request) => request::run(settings, output, Code::POST, &request).await,
        Verb::Put(request) => request::run(settings, output, Code::PUT, &request).await,
        Verb::Delete(request) => request::run(settings, output, Code::DELETE, &bare(request)).await,
        Verb::Fetch(request) => request::run(settings, output, Code::FETCH, &request).await,
        Verb::Patch(request) => request::run(settings, output, Code::PATCH, &request).await,
        Verb::Ping(ping) => ping::run(settings, output, &ping).await,
        Verb::Online(online) => online::run(settings, output, &online).await,
        // Done above.
        Verb::Demo | Verb::Bench(_) | Verb::Completions(_) | Verb::Man => Ok(Exit::Ok),
    }
}

fn print_completions(shell: clap_complete::Shell, output: Output) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "m2m", &mut text);
    output.raw(&text)?;
    Ok(Exit::Ok)
}

fn print_manual(output: Output) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    let written = clap_mangen::Man::new(Args::command()).render(&mut text);
    written.map_err(|error| Failure::Other(format!("can't make the manual page: {error}")))?;
    output.raw(&text)?;
    Ok(Exit::Ok)
}
