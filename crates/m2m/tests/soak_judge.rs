//! Judges that find nothing prove nothing: those of the soak are shown what they have to find.
use std::{
    future::{IntoFuture, ready},
    time::Duration,
};

use m2m::{Code, Error, Key, Net, Peer, Reply, Request, Response, Router};

use crate::{
    dice::filler,
    ledger::{Books, Sent, Way, Who, answer_len},
    watch::{Sample, WARM, Watch},
};

#[path = "../benches/soak/dice.rs"]
#[expect(dead_code, reason = "the soak uses the rest")]
mod dice;
#[path = "../benches/soak/ledger.rs"]
#[expect(dead_code, reason = "the soak uses the rest")]
mod ledger;
#[path = "../benches/soak/watch.rs"]
#[expect(dead_code, reason = "the soak uses the rest")]
mod watch;

const APP: Who = Who(1);
const DEVICE: Who = Who(2);
const EVERY: Duration = Duration::from_secs(5);
/// Longer than a request is waited for, and until it is judged.
const LONG: Duration = Duration::from_secs(120);

/// What grew in a run that is twice as long as it must be, of which each sample follows from the share of it that is over.
fn grown(sample: impl Fn(f64) -> Sample) -> Vec<String> {
    let count = 2 * WARM.as_secs() / EVERY.as_secs();
    let mut watch = Watch::new(2 * WARM, EVERY);
    (0..count).for_each(|n| watch.add(sample(n as f64 / count as f64)));
    assert!(watch.is_long());
    watch.judge().1
}

fn flat() -> Sample {
    Sample {
        memory: 40_000,
        host_memory: 20_000,
        descriptors: 60,
        tasks: 100,
        sessions: 40,
        registrations: 20,
        half_open: 5,
    }
}

/// So much at the end of a run, beside what was there from the beginning.
fn rising(from: u64, by: u64, over: f64) -> u64 {
    from + (by as f64 * over) as u64
}

#[test]
fn what_stays_as_it_is_has_not_grown() {
    assert_eq!(grown(|_| flat()), [""; 0]);
    // What fills up while it warms is no growth either.
    assert_eq!(
        grown(|over| Sample { memory: rising(10_000, 30_000, (4.0 * over).min(1.0)), ..flat() }),
        [""; 0]
    );
}

#[test]
fn each_figure_that_grows_is_found_alone() {
    let flat = flat();
    let cases: [(&str, &dyn Fn(f64) -> Sample); 7] = [
        ("resident memory", &|over| Sample { memory: rising(flat.memory, 20_000, over), ..flat }),
        ("the host's resident", &|over| Sample {
            host_memory: rising(flat.host_memory, 20_000, over),
            ..flat
        }),
        ("file descriptors", &|over| Sample { descriptors: rising(flat.descriptors, 60, over), ..flat }),
        ("tasks", &|over| Sample { tasks: rising(flat.tasks, 200, over), ..flat }),
        ("sessions", &|over| Sample { sessions: rising(flat.sessions, 100, over), ..flat }),
        ("registrations", &|over| Sample { registrations: rising(flat.registrations, 100, over), ..flat }),
        ("half-open handshakes", &|over| Sample { half_open: rising(flat.half_open, 1_000, over), ..flat }),
    ];
    for (name, sample) in cases {
        let grown = grown(sample);
        assert!(grown.len() == 1 && grown[0].starts_with(name), "{name}: {grown:?}");
    }
}

fn sent(method: Code) -> Sent {
    let timeout = Duration::from_secs(10);
    let (confirmable, repeatable) = (true, false);
    Sent { from: APP, to: DEVICE, method, confirmable, repeatable, len: 8, way: Way::Direct, timeout }
}

fn books() -> Books {
    Books::new(1, 1)
}

/// Sends a request of this method, and runs it so many times.
fn run(books: &Books, method: Code, runs: usize) -> u64 {
    let mut ledger = books.open();
    let number = ledger.send(sent(method));
    (0..runs).for_each(|_| ledger.ran(DEVICE, number, APP.id(), method, &filler(number, 8)));
    number
}

/// An answer from a real net to the request of this number: nobody else can make one.
async fn answer_to(number: u64) -> Result<Response, Error> {
    let open = async |who: Who| {
        let key = Key::from_bytes(&[who.0 as u8; 32]).unwrap();
        let net = Net::builder(who.id(), key.clone()).bind(([127, 0, 0, 1], 0).into()).open().await.unwrap();
        (net, key)
    };
    let ((app, _), (device, key)) = (open(APP).await, open(DEVICE).await);
    let reply = move |_: Request| ready(Reply::default().payload(filler(!number, answer_len(number))));
    drop(tokio::spawn(device.serve(Router::new().any("/work", reply))));
    let session = app.connect(Peer::addr(DEVICE.id(), device.local_addr()).key(key)).await.unwrap();
    session.get("/work").into_future().await
}

/// An error after which a request can't have run.
fn never_left() -> Error {
    Key::from_bytes(&[]).err().expect("no bytes are no key")
}

/// All time goes by: how much was found.
fn violations(books: &Books) -> u64 {
    let mut ledger = books.open();
    ledger.pass_time(LONG);
    ledger.look_for_overdue();
    ledger.finish();
    ledger.violations
}

#[tokio::test]
async fn books_that_balance_show_nothing() {
    let books = books();
    let number = run(&books, Code::POST, 1);
    let answer = answer_to(number).await;
    books.open().ended(number, answer);
    let number = run(&books, Code::POST, 0);
    books.open().ended(number, Err(never_left()));
    assert_eq!(violations(&books), 0);
    let ledger = books.open();
    assert_eq!((ledger.sent, ledger.runs, ledger.outstanding()), (2, 1, 0));
}

#[tokio::test]
async fn a_request_that_ran_twice_is_found() {
    let books = books();
    let number = run(&books, Code::POST, 2);
    let answer = answer_to(number).await;
    books.open().ended(number, answer);
    assert_eq!(violations(&books), 1);
}

#[tokio::test]
async fn who_forgot_may_run_again_what_may_be_repeated_and_nothing_else() {
    for (method, found) in [(Code::PUT, 0), (Code::POST, 1)] {
        let books = books();
        let number = run(&books, method, 1);
        books.open().forgot(DEVICE, None);
        books.open().ran(DEVICE, number, APP.id(), method, &filler(number, 8));
        let answer = answer_to(number).await;
        books.open().ended(number, answer);
        assert_eq!(violations(&books), found, "{method}");
    }
}

#[test]
fn a_request_without_an_outcome_is_found_in_time_and_at_the_end() {
    let late = books();
    run(&late, Code::GET, 1);
    assert_eq!(violations(&late), 1);
    let open = books();
    run(&open, Code::GET, 1);
    open.open().finish();
    assert_eq!(open.open().violations, 1);
}

#[tokio::test]
async fn outcomes_that_do_not_fit_the_runs_are_found() {
    let books = books();
    let number = run(&books, Code::GET, 0);
    let answer = answer_to(number).await;
    books.open().ended(number, answer);
    assert_eq!(violations(&books), 1, "answered without a run");
    let number = run(&books, Code::GET, 1);
    books.open().ended(number, Err(never_left()));
    assert_eq!(violations(&books), 2, "ran, and was said never to have left");
    let number = run(&books, Code::GET, 1);
    let answer = answer_to(number + 1).await;
    books.open().ended(number, answer);
    assert_eq!(violations(&books), 3, "another one's answer");
    books.open().ran(DEVICE, number, APP.id(), Code::GET, &filler(number, 8));
    assert_eq!(violations(&books), 4, "ran again after it was judged");
    books.open().ran(DEVICE, 1_000, APP.id(), Code::GET, &filler(1_000, 8));
    assert_eq!(violations(&books), 5, "nobody sent it");
}

#[test]
fn a_request_that_runs_elsewhere_or_changed_is_found() {
    let books = books();
    let number = run(&books, Code::GET, 0);
    let payload = filler(number, 8);
    books.open().ran(Who(3), number, APP.id(), Code::GET, &payload);
    books.open().ran(DEVICE, number, Who(3).id(), Code::GET, &payload);
    books.open().ran(DEVICE, number, APP.id(), Code::PUT, &payload);
    books.open().ran(DEVICE, number, APP.id(), Code::GET, &payload[1..]);
    assert_eq!(books.open().violations, 4);
}
