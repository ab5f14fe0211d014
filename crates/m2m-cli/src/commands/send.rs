//! `m2m send`: opaque data to a peer, and what it answers.
use std::io;
use std::time::Instant;

use futures_util::{StreamExt, TryStreamExt, pin_mut, stream};
use m2m::Session;
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

use crate::args::Send;
use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::nets;
use crate::output::{Output, millis, with_payload};

/// Messages on the way at once: as many as the protocol lets a session have.
const PIPELINE: usize = 16;

/// What a peer said to one message.
struct Answer {
    payload: Vec<u8>,
    ms: f64,
}

pub(super) async fn run(settings: &Settings, output: Output, args: &Send) -> Result<Exit, Failure> {
    let link = nets::dial(settings, output, &args.peer).await?;
    let done = if args.text == "-" {
        send_lines(settings, output, &link.session, BufReader::new(tokio::io::stdin())).await
    } else {
        let answer = send_one(settings, &link.session, args.text.clone().into_bytes()).await;
        answer.and_then(|answer| print(output, None, &answer))
    };
    let done = done.map_err(|failure| nets::with_refusal(&link.net, failure));
    nets::close(&link.net).await;
    done.map(|()| Exit::Ok)
}

async fn send_one(settings: &Settings, session: &Session, message: Vec<u8>) -> Result<Answer, Failure> {
    let start = Instant::now();
    let payload = nets::within(settings, "the peer", session.send(message).timeout(settings.timeout)).await?;
    Ok(Answer { payload: payload.to_vec(), ms: millis(start.elapsed()) })
}

/// Sends each line while earlier ones are on their way, and prints the answers in the order of the lines.
async fn send_lines(
    settings: &Settings,
    output: Output,
    session: &Session,
    input: impl AsyncBufRead + Unpin,
) -> Result<(), Failure> {
    let lines = stream::try_unfold(input, |mut input| async {
        let mut line = Vec::new();
        match input.read_until(b'\n', &mut line).await {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some((without_line_end(line), input))),
            Err(error) => Err(error),
        }
    });
    let answers = lines
        .map(|line: io::Result<Vec<u8>>| async move {
            let line = line.map_err(|error| Failure::Other(format!("can't read stdin: {error}")))?;
            send_one(settings, session, line).await
        })
        .buffered(PIPELINE);
    pin_mut!(answers);
    let mut number = 0;
    loop {
        // What was answered before a failure has been printed; the rest may have arrived all the same.
        let answer =
            answers.try_next().await.map_err(|failure| failure.during(format!("line {}", number + 1)))?;
        let Some(answer) = answer else { return Ok(()) };
        number += 1;
        print(output, Some(number), &answer)?;
    }
}

fn without_line_end(mut line: Vec<u8>) -> Vec<u8> {
    if line.ends_with(b"\n") {
        line.pop();
        if line.ends_with(b"\r") {
            line.pop();
        }
    }
    line
}

/// Prints an answer; one to a line of stdin is a line, even if it is empty.
fn print(output: Output, line: Option<u64>, answer: &Answer) -> Result<(), Failure> {
    let object = match line {
        Some(line) => json!({"line": line, "ms": answer.ms}),
        None => json!({"ms": answer.ms}),
    };
    let object = with_payload(object, &answer.payload);
    match std::str::from_utf8(&answer.payload) {
        Ok(text) => output.line(text, &object),
        Err(_) => output.payload(&answer.payload, &object),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_are_not_sent() {
        for (line, sent) in
            [("a\n", "a"), ("a\r\n", "a"), ("a", "a"), ("\n", ""), ("a\r", "a\r"), (" a \n", " a ")]
        {
            assert_eq!(without_line_end(line.into()), sent.as_bytes(), "{line:?}");
        }
    }
}
