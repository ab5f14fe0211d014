//! What a line keeps to: room for what waits, and what fits into a packet.
use super::*;
use crate::config::Limits;

/// Has `a` ask `b`, which acknowledges at once and answers with `len` bytes later; nothing of that reaches `a`.
fn answer_unheard(a: &mut Side, b: &mut Side, now: Time, len: usize) -> Outcome {
    a.request_by(now, 1, true, now + Duration::from_millis(1)).unwrap();
    let request = a.drain(now).remove(0).1;
    a.tick(now + Duration::from_millis(1));
    let outcome = b.receive(now, &request).outcome;
    if let Outcome::Request(id) = outcome {
        let late = now + Duration::from_millis(50);
        b.tick(late);
        b.respond(late, id, &vec![0; len]).unwrap();
    }
    b.drain(now + Duration::from_millis(50));
    outcome
}

#[test]
fn the_defaults_are_those_of_a_net() {
    let (line, net) = (LineConfig::default(), Limits::default());
    assert_eq!((line.max_waiting, line.max_waiting_bytes), (net.queue_messages, net.queue_bytes));
    assert_eq!((line.max_incoming, line.max_answer_bytes), (net.open_incoming, net.answer_bytes));
}

#[test]
fn responses_that_nobody_acknowledges_are_bounded() {
    let config = LineConfig { max_incoming: 3, window: 2, ..LineConfig::default() };
    let (mut a, mut b) = (Side::new(1, 0, &config), Side::new(2, 500, &config));
    for step in 0..3 {
        assert!(matches!(answer_unheard(&mut a, &mut b, at(step * 60), 10), Outcome::Request(_)), "{step}");
    }
    for step in 3..10 {
        assert_eq!(answer_unheard(&mut a, &mut b, at(step * 60), 10), Outcome::Overloaded);
    }
    let mut ack = Vec::new();
    MessageWriter::empty(&mut ack, MessageType::Ack, Mid(500));
    assert_eq!(b.receive(at(600), &ack).outcome, Outcome::Done);
    assert!(matches!(answer_unheard(&mut a, &mut b, at(600), 10), Outcome::Request(_)));
    b.with(at(700), |line, cx| line.fail_open(cx));
    assert!(matches!(answer_unheard(&mut a, &mut b, at(700), 10), Outcome::Request(_)));
}

#[test]
fn bytes_of_responses_that_nobody_acknowledges_are_bounded() {
    let config = LineConfig { max_answer_bytes: 1500, ..LineConfig::default() };
    let (mut a, mut b) = (Side::new(1, 0, &config), Side::new(2, 500, &config));
    let outcomes: Vec<_> = (0..3).map(|step| answer_unheard(&mut a, &mut b, at(step * 60), 1000)).collect();
    assert!(matches!(outcomes[..], [Outcome::Request(_), Outcome::Request(_), Outcome::Overloaded]));
}

fn send(side: &mut Side, user: u64, is_confirmable: bool, len: usize) {
    let parts = RequestParts {
        code: Code::POST,
        options: &OptionSet::new(),
        payload: &vec![0; len],
        is_confirmable,
        is_repeatable: false,
        is_observe: false,
        deadline: at(100_000),
        user,
    };
    side.with(at(0), |line, cx| line.request(cx, &parts)).unwrap();
}

fn failed(side: &mut Side) -> Vec<(u64, Failure)> {
    let failure = |event| match event {
        LineEvent::Failed { user, reason, .. } | LineEvent::NotifyFailed { user, reason } => (user, reason),
        LineEvent::Notified { .. } => panic!("{event:?}"),
    };
    side.events().into_iter().map(failure).collect()
}

fn notify(side: &mut Side, user: u64, is_confirmable: bool, len: usize) {
    let response = ResponseParts { code: Code::CONTENT, options: &OptionSet::new(), payload: &vec![0; len] };
    let parts = NotifyParts { token: MessageToken::from_u32(9), response, is_confirmable, user };
    side.with(at(0), |line, cx| line.notify(cx, &parts)).unwrap();
}

/// Sends what fits into `max_len`, and says so of what doesn't.
fn drain_fitting(side: &mut Side, now: Time, max_len: usize) -> Vec<(u64, Vec<u8>)> {
    let mut sent = Vec::new();
    while let Some(bytes) = side.with(now, |line, cx| line.poll_message(cx).map(|out| out.bytes.to_vec())) {
        if bytes.len() > max_len {
            side.with(now, |line, cx| line.fail_front(cx));
        } else {
            side.with(now, |line, cx| line.sent_in(cx, 0));
            sent.push((0, bytes));
        }
    }
    sent
}

#[test]
fn what_a_session_cannot_take_fails_when_it_comes_up() {
    let config = LineConfig { window: 1, ..LineConfig::default() };
    let mut a = Side::new(1, 100, &config);
    send(&mut a, 1, true, 500);
    // It has its Message ID by this, but hasn't left.
    assert!(a.with(at(0), |line, cx| line.poll_message(cx).is_some()));
    send(&mut a, 2, true, 10);
    send(&mut a, 3, true, 500);
    notify(&mut a, 4, true, 500);
    send(&mut a, 5, false, 500);
    a.with(at(0), |line, cx| line.limit_messages(cx, 400));
    let too_large = |user| (user, Failure::TooLarge);
    assert_eq!(failed(&mut a), [1, 3, 4, 5].map(too_large));
    assert_eq!(a.line.busy.as_ref().unwrap().outgoing.waiting().0, 1);
    assert_eq!(shown(&a.drain(at(0))), ["Con 0.02 101"]);
    // What left may have run: it waits for its answer.
    a.with(at(0), |line, cx| line.limit_messages(cx, 5));
    assert_eq!((failed(&mut a), a.line.in_flight()), (Vec::new(), 1));
}

#[test]
fn responses_that_do_not_fit_become_errors() {
    for is_front in [false, true] {
        let config = LineConfig::default();
        let (mut a, mut b) = (Side::new(1, 100, &config), Side::new(2, 500, &config));
        send(&mut a, 1, true, 0);
        send(&mut a, 2, true, 0);
        send(&mut a, 3, false, 0);
        let mut open = Vec::new();
        // Confirmable messages leave after those that aren't.
        for (_, bytes) in a.drain(at(0)) {
            match b.receive(at(0), &bytes).outcome {
                Outcome::Request(id) => open.push(id),
                other => panic!("{other:?}"),
            }
        }
        b.respond(at(0), open[0], &[0; 500]).unwrap();
        b.respond(at(0), open[1], &[0; 500]).unwrap();
        b.tick(at(50));
        b.respond(at(50), open[2], &[0; 500]).unwrap();
        if !is_front {
            b.with(at(50), |line, cx| line.limit_messages(cx, 400));
        }
        let max_len = if is_front { 400 } else { usize::MAX };
        let sent = drain_fitting(&mut b, at(50), max_len);
        let codes: Vec<_> = sent.iter().map(|(_, bytes)| Message::parse(bytes).unwrap().code()).collect();
        let errors = codes.iter().filter(|code| **code == Code::INTERNAL_SERVER_ERROR).count();
        assert_eq!(errors, 3, "{:?}", shown(&sent));
        let is_response = |outcome| matches!(outcome, Outcome::Response { is_last: true, .. });
        let answered = sent.iter().filter(|(_, bytes)| is_response(a.receive(at(60), bytes).outcome)).count();
        assert_eq!((answered, failed(&mut a)), (3, Vec::new()));
        let (count, bytes) = b.line.busy.as_ref().unwrap().outgoing.responses();
        assert_eq!((count, bytes), (1, 8), "what is counted is what is kept");
    }
}

#[test]
fn a_message_that_fits_nowhere_blocks_nobody() {
    let mut a = Side::new(1, 100, &LineConfig::default());
    send(&mut a, 1, true, 500);
    send(&mut a, 2, true, 10);
    send(&mut a, 3, false, 500);
    notify(&mut a, 4, true, 500);
    notify(&mut a, 5, false, 500);
    let sent = drain_fitting(&mut a, at(0), 400);
    assert_eq!(shown(&sent), ["Non 5.00 32869", "Con 0.02 101"]);
    let too_large = |user| (user, Failure::TooLarge);
    assert_eq!(failed(&mut a), [3, 1, 4].map(too_large));
    // Not even the shortest fits: still nothing is stuck, and what left before ends as unanswered.
    notify(&mut a, 6, false, 500);
    while a.line.in_flight() > 0 {
        let now = a.line.next_timeout();
        a.tick(now);
        assert_eq!(drain_fitting(&mut a, now, 3), []);
    }
    assert_eq!(failed(&mut a), [(2, Failure::TimedOut)]);
    assert!(a.line.is_idle());
}
