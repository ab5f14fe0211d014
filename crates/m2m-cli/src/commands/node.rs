//! `m2m node`: a device. It registers with its host, answers data, and has resources.
use std::sync::{Arc, Mutex, PoisonError};

use m2m::{ContentFormat, Reply, Request, Router};
use serde_json::json;

use super::server::run_until_stopped;
use crate::args::{Node, Resource};
use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::nets;
use crate::output::{Output, short, with_payload};

pub(super) async fn run(settings: &Settings, output: Output, args: Node) -> Result<Exit, Failure> {
    let mut builder = nets::builder(settings).await?;
    if let Some(address) = args.bind {
        builder = builder.bind(address);
    }
    if !settings.hosts.is_empty() {
        builder = nets::with_hosts(builder, settings)?;
    }
    let net = builder.allow_key_change(args.allow_key_change).open().await?;
    let router = if args.echo { echo(Router::new()) } else { print_data(Router::new(), output) };
    let router = args.resources.into_iter().fold(router, with_resource);
    tokio::spawn(net.serve(router));
    run_until_stopped(&net, output, "node", &settings.hosts).await
}

fn echo(router: Router) -> Router {
    router.data(|request: Request| async move { Reply::content(request.payload) })
}

/// Prints what comes, a line each, and acknowledges it empty once it is printed.
fn print_data(router: Router, output: Output) -> Router {
    router.data(move |request: Request| async move {
        let from = request.peer;
        let object = with_payload(json!({"event": "data", "from": from.to_string()}), &request.payload);
        let words = format!("{}: {}", short(from), String::from_utf8_lossy(&request.payload).escape_debug());
        // A reader that is slow to read delays this answer and nothing else.
        let printed = tokio::task::spawn_blocking(move || output.line(&words, &object)).await;
        match printed {
            Ok(Ok(())) => Reply::changed(),
            _ => Reply::new(m2m::Code::SERVICE_UNAVAILABLE),
        }
    })
}

/// A value that GET returns and PUT replaces.
fn with_resource(router: Router, resource: Resource) -> Router {
    let value =
        Arc::new(Mutex::new(Value { bytes: resource.value.into_bytes(), format: Some(ContentFormat::TEXT) }));
    let read = value.clone();
    router
        .get(&resource.path, move |_: Request| {
            let reply = lock(&read).reply();
            async move { reply }
        })
        .put(&resource.path, move |request: Request| {
            *lock(&value) = Value { bytes: request.payload.to_vec(), format: request.format };
            async { Reply::changed() }
        })
}

/// What a resource holds, in the form it was last given in.
struct Value {
    bytes: Vec<u8>,
    format: Option<ContentFormat>,
}

impl Value {
    fn reply(&self) -> Reply {
        let reply = Reply::content(self.bytes.clone());
        match self.format {
            Some(format) => reply.format(format.0),
            None => reply,
        }
    }
}

/// Each change is one assignment: the value is whole whenever the lock is free.
fn lock(value: &Mutex<Value>) -> std::sync::MutexGuard<'_, Value> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
