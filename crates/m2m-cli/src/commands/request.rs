//! `m2m get`, `post`, `put`, `delete`, `fetch` and `patch`: one CoAP request to a resource of a peer.
use std::path::Path;
use std::time::Instant;

use m2m::Response;
use m2m_proto::coap::code::Code;
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::args::RequestWithPayload;
use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::nets;
use crate::output::{self, Output, millis, with_payload};

pub(super) async fn run(
    settings: &Settings,
    output: Output,
    method: Code,
    args: &RequestWithPayload,
) -> Result<Exit, Failure> {
    let payload = payload(args).await?;
    let link = nets::dial(settings, output, &args.request.peer).await?;
    let mut request = link.session.request(method, &args.request.path).timeout(settings.timeout);
    if !payload.is_empty() {
        request = request.payload(payload);
    }
    if let Some(format) = args.format {
        request = request.format(format);
    }
    let start = Instant::now();
    let response = nets::within(settings, "the peer", request).await;
    let time = start.elapsed();
    let response = response.map_err(|failure| nets::with_refusal(&link.net, failure));
    nets::close(&link.net).await;
    print(output, &response?, time)
}

fn print(output: Output, response: &Response, time: std::time::Duration) -> Result<Exit, Failure> {
    let code = response.code;
    let mut object = json!({"code": dotted(code), "ok": code.is_success(), "ms": millis(time)});
    if let Some(format) = response.format() {
        object["format"] = format.0.into();
    }
    let object = with_payload(object, &response.payload);
    let name = code.name().unwrap_or("a code without a name");
    let words = format!("{} {name}", dotted(code));
    if code.is_success() {
        output.payload(&response.payload, &object)?;
        if response.payload.is_empty() {
            output.say(&words);
        }
        return Ok(Exit::Ok);
    }
    // A refusal's payload is words for a person (RFC 7252 section 5.5.2), no data.
    let diagnostic = String::from_utf8_lossy(&response.payload);
    let colon = if diagnostic.is_empty() { "" } else { ": " };
    output::warn(&format!("m2m: the peer answered {words}{colon}{}", diagnostic.escape_debug()));
    output.object(&object)?;
    Ok(Exit::of(m2m::ErrorKind::Refused, Some(code)))
}

fn dotted(code: Code) -> String {
    format!("{}.{:02}", code.class(), code.detail())
}

async fn payload(args: &RequestWithPayload) -> Result<Vec<u8>, Failure> {
    if let Some(text) = args.payload.as_ref().filter(|text| *text != "-").or(args.data.as_ref()) {
        return Ok(text.clone().into_bytes());
    }
    match &args.file {
        Some(path) if path != Path::new("-") => {
            let failed = |error| Failure::Other(format!("can't read {}: {error}", path.display()));
            tokio::fs::read(path).await.map_err(failed)
        }
        None if args.payload.is_none() => Ok(Vec::new()),
        _ => {
            let mut bytes = Vec::new();
            let failed = |error| Failure::Other(format!("can't read stdin: {error}"));
            tokio::io::stdin().read_to_end(&mut bytes).await.map_err(failed)?;
            Ok(bytes)
        }
    }
}
