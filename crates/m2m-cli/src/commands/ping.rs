//! `m2m ping`: the way to a peer and back, measured inside the session.
use std::time::Duration;

use m2m::{ErrorKind, Path, Session};
use serde_json::{Value, json};

use super::stop::Stop;
use crate::args::Ping;
use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::nets::{self, Link};
use crate::output::{Output, millis};

pub(super) async fn run(settings: &Settings, output: Output, args: &Ping) -> Result<Exit, Failure> {
    let link = nets::dial(settings, output, &args.peer).await?;
    let mut stop = Stop::new()?;
    let mut tally = Tally::default();
    let done = tokio::select! {
        done = ping_all(settings, output, args, &link, &mut tally) => done,
        () = stop.asked() => Ok(()),
    };
    let done = done.map_err(|failure| nets::with_refusal(&link.net, failure));
    nets::close(&link.net).await;
    // Without a ping there is nothing to sum up; nor is there for somebody who reads no more.
    if tally.sent > 0 && !matches!(done, Err(Failure::ClosedPipe)) {
        let (words, object) = summary(tally.sent, &tally.times);
        output.line(&words, &object)?;
    }
    done?;
    Ok(if tally.times.is_empty() { Exit::Unreachable } else { Exit::Ok })
}

/// What came of the pings so far.
#[derive(Default)]
struct Tally {
    sent: u32,
    times: Vec<Duration>,
}

async fn ping_all(
    settings: &Settings,
    output: Output,
    args: &Ping,
    link: &Link,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let session = &link.session;
    nets::within(settings, "the peer", session.up()).await?;
    for seq in 1..=args.count {
        if seq > 1 {
            tokio::time::sleep(Duration::from_secs_f64(args.interval)).await;
        }
        tally.sent = seq;
        match nets::within(settings, "the peer", session.ping()).await {
            Ok(time) => {
                tally.times.push(time);
                report(output, seq, time, session)?;
            }
            Err(failure) if is_lost(&failure) => {
                output.line(&format!("{seq}: no answer"), &json!({"seq": seq, "ms": null}))?;
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// One ping without an answer is what is being measured; a session that is gone is not.
fn is_lost(failure: &Failure) -> bool {
    match failure {
        Failure::Net { error, .. } => error.kind() == ErrorKind::Timeout,
        failure => matches!(failure, Failure::TimedOut(_)),
    }
}

fn report(output: Output, seq: u32, time: Duration, session: &Session) -> Result<(), Failure> {
    let ms = millis(time);
    let path = session.path();
    let object = match path {
        Path::Direct(address) => json!({"direct": address.to_string()}),
        Path::Relay(host) => json!({"relay": host.to_string()}),
        other => json!(other.to_string()),
    };
    output.line(&format!("{seq}: {ms} ms, {path}"), &json!({"seq": seq, "ms": ms, "path": object}))
}

fn summary(sent: u32, times: &[Duration]) -> (String, Value) {
    let answered = times.len() as u32;
    let lost = 100 * (sent - answered) / sent.max(1);
    let counts = format!("{sent} sent, {answered} answered, {lost} % lost");
    let (Some(min), Some(max)) = (times.iter().min(), times.iter().max()) else {
        return (counts, json!({"sent": sent, "answered": 0}));
    };
    let (min, max) = (millis(*min), millis(*max));
    let avg = millis(times.iter().sum::<Duration>() / answered);
    let object = json!({"sent": sent, "answered": answered, "min_ms": min, "avg_ms": avg, "max_ms": max});
    (format!("{counts}, min/avg/max {min}/{avg}/{max} ms"), object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_what_came_back() {
        let times = [1, 2, 6].map(Duration::from_millis);
        let (words, object) = summary(4, &times);
        assert_eq!(words, "4 sent, 3 answered, 25 % lost, min/avg/max 1/3/6 ms");
        assert_eq!(object["answered"], 3);
        assert_eq!(object["avg_ms"], 3.0);
    }

    #[test]
    fn nothing_came_back() {
        let (words, object) = summary(2, &[]);
        assert_eq!(words, "2 sent, 0 answered, 100 % lost");
        assert_eq!(object, json!({"sent": 2, "answered": 0}));
    }
}
