//! Rule by rule.
use super::*;
use crate::coap::writer::set_mid;

fn pair() -> (Side, Side) {
    let config = LineConfig::default();
    (Side::new(1, 100, &config), Side::new(2, 500, &config))
}

/// Delivers what `from` sends to `to`, and returns what came of each message.
fn carry(now: Time, from: &mut Side, to: &mut Side) -> Vec<Outcome> {
    let sent = from.drain(now);
    sent.iter().map(|(_, bytes)| to.receive(now, bytes).outcome).collect()
}

fn only_request(outcomes: &[Outcome]) -> IncomingId {
    match outcomes {
        [Outcome::Request(id)] => *id,
        other => panic!("not one request: {other:?}"),
    }
}

fn failures(side: &mut Side) -> Vec<(u64, Failure)> {
    let failure = |event: &LineEvent| match event {
        LineEvent::Failed { user, reason, .. } => (*user, *reason),
        other => panic!("{other:?}"),
    };
    side.events().iter().map(failure).collect()
}

#[test]
fn an_answer_in_time_goes_with_the_acknowledgement() {
    let (mut a, mut b) = pair();
    let id = a.request(at(0), 7).unwrap();
    let request = a.drain(at(0));
    assert_eq!(shown(&request), ["Con 0.02 100"]);
    let incoming = only_request(&[b.receive(at(10), &request[0].1).outcome]);
    b.respond(at(20), incoming, b"yes").unwrap();
    let answer = b.drain(at(20));
    assert_eq!(shown(&answer), ["Ack 2.04 100"]);
    let handled = a.receive(at(30), &answer[0].1);
    assert_eq!(handled.outcome, Outcome::Response { id, user: 7, is_last: true });
    assert_eq!(handled.answered, Some(request[0].0));
    assert_eq!(a.line.round_trip(), Some(Duration::from_millis(30)));
    assert!(a.line.is_idle() && b.line.is_idle());
    assert_eq!(a.receive(at(31), &answer[0].1).outcome, Outcome::Unmatched);
    assert_eq!(b.respond(at(40), incoming, b"again"), Err(LineError::UnknownRequest));
}

#[test]
fn a_late_answer_is_a_message_of_its_own() {
    let (mut a, mut b) = pair();
    a.request(at(0), 7).unwrap();
    let incoming = only_request(&carry(at(0), &mut a, &mut b));
    assert_eq!(b.line.next_timeout(), at(50));
    b.tick(at(50));
    let ack = b.drain(at(50));
    assert_eq!(shown(&ack), ["Ack 0.00 100"]);
    assert_eq!(a.receive(at(60), &ack[0].1), Handled { outcome: Outcome::Done, answered: Some(0) });
    a.tick(at(20_000));
    assert_eq!(a.drain(at(20_000)), [], "it was acknowledged, so it isn't sent again");

    b.respond(at(25_000), incoming, b"done").unwrap();
    let response = b.drain(at(25_000));
    assert_eq!(shown(&response), ["Con 2.04 500"]);
    assert!(matches!(a.receive(at(25_000), &response[0].1).outcome, Outcome::Response { user: 7, .. }));
    assert_eq!(a.receive(at(25_001), &response[0].1).outcome, Outcome::Repeated);
    let acks = a.drain(at(25_001));
    assert_eq!(shown(&acks), ["Ack 0.00 500", "Ack 0.00 500"]);
    assert_eq!(b.receive(at(25_002), &acks[0].1).outcome, Outcome::Done);
    assert!(a.line.is_idle() && b.line.is_idle());
}

#[test]
fn a_response_that_overtakes_its_acknowledgement_stands_for_it() {
    let (mut a, mut b) = pair();
    let id = a.request(at(0), 7).unwrap();
    let incoming = only_request(&carry(at(0), &mut a, &mut b));
    b.tick(at(50));
    b.respond(at(60), incoming, b"done").unwrap();
    let sent = b.drain(at(60));
    assert_eq!(shown(&sent), ["Ack 0.00 100", "Con 2.04 500"]);
    let handled = a.receive(at(61), &sent[1].1);
    let outcome = Outcome::Response { id, user: 7, is_last: true };
    assert_eq!(handled, Handled { outcome, answered: Some(0) });
    assert_eq!(a.line.in_flight(), 0);
    assert_eq!(a.receive(at(62), &sent[0].1).outcome, Outcome::Unmatched);
}

#[test]
fn a_request_that_comes_again_runs_once() {
    let (mut a, mut b) = pair();
    a.request(at(0), 7).unwrap();
    let request = a.drain(at(0)).remove(0).1;
    let incoming = only_request(&[b.receive(at(0), &request).outcome]);
    // While nothing has left, there is nothing to say.
    assert_eq!(b.receive(at(1), &request).outcome, Outcome::Repeated);
    assert_eq!(b.drain(at(1)), []);
    b.tick(at(50));
    assert_eq!(shown(&b.drain(at(50))), ["Ack 0.00 100"]);
    assert_eq!(b.receive(at(51), &request).outcome, Outcome::Repeated);
    assert_eq!(shown(&b.drain(at(51))), ["Ack 0.00 100"]);
    b.respond(at(60), incoming, b"done").unwrap();
    assert_eq!(shown(&b.drain(at(60))), ["Con 2.04 500"]);
    assert_eq!(b.receive(at(61), &request).outcome, Outcome::Repeated);
    assert_eq!(shown(&b.drain(at(61))), ["Ack 0.00 100"]);
}

#[test]
fn a_cached_answer_leaves_again_until_it_is_given_up() {
    let (mut a, mut b) = pair();
    a.request(at(0), 7).unwrap();
    let request = a.drain(at(0)).remove(0).1;
    let incoming = only_request(&[b.receive(at(0), &request).outcome]);
    b.respond(at(0), incoming, b"yes").unwrap();
    // Before it has left, a repetition adds nothing.
    assert_eq!(b.receive(at(0), &request).outcome, Outcome::Repeated);
    let first = b.drain(at(0));
    assert_eq!(first.len(), 1);
    assert_eq!(b.receive(at(1), &request).outcome, Outcome::Repeated);
    assert_eq!(b.drain(at(1))[0].1, first[0].1);

    b.with(at(2), |line, cx| line.shrink(cx));
    assert!(b.line.busy.is_none());
    assert_eq!(b.receive(at(3), &request).outcome, Outcome::AnswerGone);
    assert_eq!(b.drain(at(3)), []);
}

#[test]
fn answers_expire_and_leave_nothing_behind() {
    let (mut a, mut b) = pair();
    a.request(at(0), 7).unwrap();
    let incoming = only_request(&carry(at(0), &mut a, &mut b));
    b.respond(at(0), incoming, b"yes").unwrap();
    carry(at(0), &mut b, &mut a);
    b.tick(at(50));
    assert_eq!(b.line.next_timeout(), at(247_000));
    b.tick(at(247_000));
    assert!(b.line.busy.is_none());
    assert_eq!(b.line.next_timeout(), Time::NEVER);
    a.tick(at(30_000));
    assert!(a.line.busy.is_none());
}

#[test]
fn answers_are_bounded_and_marks_outlive_them() {
    use Outcome::{AnswerGone, Repeated};
    let config = LineConfig { max_answers: 3, max_answer_bytes: 40, ..LineConfig::default() };
    let (mut a, mut b) = (Side::new(1, 0, &config), Side::new(2, 0, &config));
    let mut requests = Vec::new();
    for user in 0..5 {
        a.request(at(0), user).unwrap();
        requests.push(a.drain(at(0)).remove(0).1);
        let incoming = only_request(&[b.receive(at(0), &requests[user as usize]).outcome]);
        b.respond(at(0), incoming, &[user as u8; 3]).unwrap();
        b.drain(at(0));
    }
    let outcomes: Vec<_> = requests.iter().map(|request| b.receive(at(1), request).outcome).collect();
    assert_eq!(outcomes, [AnswerGone, AnswerGone, Repeated, Repeated, Repeated]);
    b.drain(at(1));
    // 12 bytes each fitted; one of 40 drives all others out.
    a.request(at(2), 9).unwrap();
    let incoming = only_request(&carry(at(2), &mut a, &mut b));
    b.respond(at(2), incoming, &[0; 31]).unwrap();
    assert!(requests.iter().all(|request| b.receive(at(3), request).outcome == AnswerGone));
}

#[test]
fn sends_again_with_doubled_timeouts_and_then_gives_up() {
    let (mut a, _) = pair();
    let id = a.request_by(at(0), 7, true, Time::NEVER).unwrap();
    let mut times = Vec::new();
    let mut now = at(0);
    while times.is_empty() || a.line.in_flight() > 0 {
        a.tick(now);
        let sent = a.drain(now);
        assert!(sent.iter().all(|(_, bytes)| show(bytes) == "Con 0.02 100"));
        times.extend(sent.iter().map(|_| now));
        now = a.line.next_timeout();
    }
    assert_eq!(times.len(), 5);
    let first = times[1] - times[0];
    assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&first), "{first:?}");
    for (doublings, pair) in times.windows(2).enumerate() {
        let off = (pair[1] - pair[0]).abs_diff(first * (1 << doublings));
        assert!(off < Duration::from_micros(100), "{times:?}");
    }
    assert_eq!(a.events(), [LineEvent::Failed { id, user: 7, reason: Failure::TimedOut }]);
    assert!(a.line.is_idle());
}

#[test]
fn a_deadline_ends_what_was_sent_and_what_waits() {
    let (mut a, _) = pair();
    for user in 0..20 {
        a.request_by(at(0), user, true, at(1000 + user)).unwrap();
    }
    assert_eq!(a.drain(at(0)).len(), 10);
    a.tick(at(1019));
    let expected = |user| (user, if user < 10 { Failure::TimedOut } else { Failure::NotSent });
    assert_eq!(failures(&mut a), (0..20).map(expected).collect::<Vec<_>>());
    assert!(a.line.is_idle());
    assert_eq!(a.drain(at(1020)), []);
}

#[test]
fn a_sample_counts_only_what_was_sent_once() {
    let (mut a, mut b) = pair();
    a.request(at(0), 7).unwrap();
    a.drain(at(0));
    a.tick(at(3000));
    let again = a.drain(at(3000)).remove(0).1;
    let incoming = only_request(&[b.receive(at(3010), &again).outcome]);
    b.respond(at(3010), incoming, b"").unwrap();
    carry(at(3010), &mut b, &mut a);
    assert_eq!(a.line.round_trip(), None);
    // The doubled timeout stays in force until there is a sample, for what else the line sends; not for others.
    assert_eq!(a.line.rto(&a.config), Duration::from_secs(2));
    a.request(at(3020), 8).unwrap();
    a.drain(at(3020));
    a.tick(at(3020 + 3990));
    assert_eq!(a.drain(at(3020 + 3990)), []);
    a.tick(at(3020 + 6010));
    assert_eq!(a.drain(at(3020 + 6010)).len(), 1);
}

#[test]
fn a_full_queue_is_an_error_at_once() {
    let full = Some(LineError::QueueFull);
    let config = LineConfig { max_waiting: 4, max_requests: 8, ..LineConfig::default() };
    let mut a = Side::new(1, 0, &config);
    let ask =
        |a: &mut Side, times| -> Vec<_> { (0..times).map(|user| a.request(at(0), user).err()).collect() };
    assert_eq!(ask(&mut a, 6), [None, None, None, None, full, full]);
    assert_eq!(a.drain(at(0)).len(), 4);
    assert_eq!(ask(&mut a, 5), [None, None, None, None, full]);
    let mut a = Side::new(1, 0, &LineConfig { max_waiting_bytes: 20, ..LineConfig::default() });
    assert_eq!(ask(&mut a, 3), [None, None, full]);
}

#[test]
fn refuses_what_cannot_be_sent() {
    let (mut a, mut b) = pair();
    let options = OptionSet::new();
    let large = [0; 1200];
    let mut parts = RequestParts {
        code: Code::PUT,
        options: &options,
        payload: &large,
        is_confirmable: true,
        is_repeatable: false,
        is_observe: false,
        deadline: at(1000),
        user: 0,
    };
    assert_eq!(a.with(at(0), |line, cx| line.request(cx, &parts)), Err(LineError::TooLarge));
    parts.code = Code::CONTENT;
    assert_eq!(a.with(at(0), |line, cx| line.request(cx, &parts)), Err(LineError::WrongCode));
    assert!(a.line.is_idle());

    a.request(at(0), 1).unwrap();
    let incoming = only_request(&carry(at(0), &mut a, &mut b));
    assert_eq!(b.respond(at(0), incoming, &large), Err(LineError::TooLarge));
    // It still waits, so that the handler can say 5.00 instead.
    assert_eq!(b.respond(at(0), incoming, b"short"), Ok(()));
}

#[test]
fn rejects_pings_and_strange_responses() {
    let (mut a, mut b) = pair();
    let mut ping = Vec::new();
    MessageWriter::empty(&mut ping, MessageType::Con, Mid(9));
    assert_eq!(a.receive(at(0), &ping).outcome, Outcome::Done);
    assert_eq!(shown(&a.drain(at(0))), ["Rst 0.00 9"]);

    // A response whose request was forgotten, twice.
    let id = a.request(at(0), 7).unwrap();
    let incoming = only_request(&carry(at(0), &mut a, &mut b));
    b.tick(at(50));
    carry(at(50), &mut b, &mut a);
    assert!(a.with(at(51), |line, cx| line.forget(cx, id)));
    assert!(!a.with(at(51), |line, cx| line.forget(cx, id)));
    b.respond(at(60), incoming, b"late").unwrap();
    let response = b.drain(at(60)).remove(0).1;
    assert_eq!(a.receive(at(60), &response).outcome, Outcome::Unmatched);
    assert_eq!(a.receive(at(61), &response).outcome, Outcome::Unmatched);
    let resets = a.drain(at(61));
    assert_eq!(shown(&resets), ["Rst 0.00 500", "Rst 0.00 500"]);
    assert_eq!(b.receive(at(62), &resets[0].1).outcome, Outcome::Done);
    assert_eq!(b.receive(at(62), &resets[1].1).outcome, Outcome::Reset(Mid(500)));
    b.tick(at(10_000));
    assert_eq!(b.drain(at(10_000)), [], "the reset ended the response");
}

#[test]
fn a_reset_fails_the_request() {
    let (mut a, _) = pair();
    let id = a.request(at(0), 7).unwrap();
    a.drain(at(0));
    let mut reset = Vec::new();
    MessageWriter::empty(&mut reset, MessageType::Rst, Mid(100));
    assert_eq!(a.receive(at(1), &reset), Handled { outcome: Outcome::Done, answered: Some(0) });
    assert_eq!(a.events(), [LineEvent::Failed { id, user: 7, reason: Failure::Reset }]);
}

#[test]
fn non_confirmable_stays_so_both_ways() {
    let (mut a, mut b) = pair();
    let id = a.request_by(at(0), 7, false, at(1000)).unwrap();
    let request = a.drain(at(0));
    assert_eq!(shown(&request), [format!("Non 0.02 {}", 100 + 0x8000)]);
    let incoming = only_request(&[b.receive(at(1), &request[0].1).outcome]);
    b.tick(at(900));
    b.respond(at(900), incoming, b"yes").unwrap();
    let response = b.drain(at(900));
    assert_eq!(shown(&response), [format!("Non 2.04 {}", 500 + 0x8000)]);
    let handled = a.receive(at(901), &response[0].1);
    let expected = Outcome::Response { id, user: 7, is_last: true };
    assert_eq!(handled, Handled { outcome: expected, answered: Some(request[0].0) });
    // Unanswered, it fails at its deadline, whether it left or not.
    a.request_by(at(1000), 8, false, at(2000)).unwrap();
    a.drain(at(1000));
    a.request_by(at(1000), 9, false, at(2000)).unwrap();
    a.tick(at(2000));
    assert_eq!(failures(&mut a), [(8, Failure::TimedOut), (9, Failure::NotSent)]);
    assert_eq!(a.drain(at(2000)), []);
}

#[test]
fn mids_of_the_two_kinds_keep_apart() {
    let (mut a, _) = pair();
    let window = MID_WINDOW as u16;
    for _ in 0..70_000 {
        let next = a.line.next_mid;
        let mid = a.line.take_non_mid();
        assert!(mid.since(next.plus(window)) <= 0u16.wrapping_sub(2 * window), "{mid:?} beside {next:?}");
    }
}

#[test]
fn reordering_at_the_start_runs_everything() {
    let (mut a, mut b) = pair();
    for user in 0..6 {
        a.request(at(0), user).unwrap();
    }
    let sent = a.drain(at(0));
    for order in [3, 5, 0, 4, 1, 2] {
        assert!(matches!(b.receive(at(1), &sent[order].1).outcome, Outcome::Request(_)), "{order}");
    }
    for (_, bytes) in &sent {
        assert_eq!(b.receive(at(2), bytes).outcome, Outcome::Repeated);
    }
}

#[test]
fn what_is_too_old_to_tell_is_dropped() {
    let (mut a, mut b) = pair();
    a.request(at(0), 1).unwrap();
    let mut request = a.drain(at(0)).remove(0).1;
    b.receive(at(0), &request);
    set_mid(&mut request, Mid(100 + 256));
    assert!(matches!(b.receive(at(0), &request).outcome, Outcome::Request(_)));
    set_mid(&mut request, Mid(100));
    assert_eq!(b.receive(at(0), &request).outcome, Outcome::TooOld);
    set_mid(&mut request, Mid(101));
    assert!(matches!(b.receive(at(0), &request).outcome, Outcome::Request(_)));
}

#[test]
fn too_many_open_requests_are_refused_and_never_run() {
    let config = LineConfig { max_incoming: 2, ..LineConfig::default() };
    let (mut a, mut b) = (Side::new(1, 0, &config), Side::new(2, 0, &config));
    for user in 0..3 {
        a.request(at(0), user).unwrap();
    }
    let sent = a.drain(at(0));
    let outcomes: Vec<_> = sent.iter().map(|(_, bytes)| b.receive(at(0), bytes).outcome).collect();
    let [Outcome::Request(first), Outcome::Request(_), Outcome::Overloaded] = outcomes[..] else { panic!() };
    let refusal = b.drain(at(0)).remove(0).1;
    let message = Message::parse(&refusal).unwrap();
    assert_eq!((message.code(), message.uint(OptionNumber::MAX_AGE)), (Code::TOO_MANY_REQUESTS, Some(1)));
    assert!(matches!(a.receive(at(1), &refusal).outcome, Outcome::Response { user: 2, .. }));
    b.respond(at(1), first, b"").unwrap();
    assert_eq!(
        b.receive(at(2), &sent[2].1).outcome,
        Outcome::Repeated,
        "there is room now, but it was refused"
    );

    a.request_by(at(3), 4, false, at(1000)).unwrap();
    a.request_by(at(3), 5, false, at(1000)).unwrap();
    let outcomes = carry(at(3), &mut a, &mut b);
    assert!(matches!(outcomes[..], [Outcome::Request(_), Outcome::Overloaded]), "{outcomes:?}");
}

#[test]
fn an_ignored_request_is_acknowledged_only() {
    let (mut a, mut b) = pair();
    a.request(at(0), 7).unwrap();
    let request = a.drain(at(0)).remove(0).1;
    let incoming = only_request(&[b.receive(at(0), &request).outcome]);
    b.with(at(1), |line, cx| line.ignore(cx, incoming)).unwrap();
    assert_eq!(shown(&b.drain(at(1))), ["Ack 0.00 100"]);
    assert!(b.line.is_idle());
    assert_eq!(b.receive(at(2), &request).outcome, Outcome::Repeated);
    assert_eq!(shown(&b.drain(at(2))), ["Ack 0.00 100"]);
}

#[test]
fn polling_without_sending_gives_the_same_message() {
    let (mut a, _) = pair();
    a.request(at(0), 7).unwrap();
    let first = a.with(at(0), |line, cx| line.poll_message(cx).map(|out| out.bytes.to_vec()));
    let second = a.with(at(0), |line, cx| line.poll_message(cx).map(|out| out.bytes.to_vec()));
    assert_eq!(first, second);
    assert_eq!(a.line.in_flight(), 1);
    a.with(at(0), |line, cx| line.fail_open(cx));
    assert_eq!(failures(&mut a), [(7, Failure::NotSent)]);
}

#[test]
fn the_end_of_the_session_tells_what_may_have_run() {
    let config = LineConfig { window: 1, ..LineConfig::default() };
    let (mut a, mut b) = (Side::new(1, 0, &config), Side::new(2, 0, &config));
    (0..3).for_each(|user| assert!(a.request(at(0), user).is_ok()));
    let incoming = only_request(&carry(at(0), &mut a, &mut b));
    a.with(at(1), |line, cx| line.fail_open(cx));
    let expected = [(0, Failure::SessionLost), (1, Failure::NotSent), (2, Failure::NotSent)];
    assert_eq!(failures(&mut a), expected);
    assert!(a.line.is_idle());
    b.with(at(1), |line, cx| line.fail_open(cx));
    assert_eq!(b.respond(at(2), incoming, b""), Err(LineError::UnknownRequest));
}

#[test]
fn a_new_session_sends_again_what_was_in_flight() {
    let (mut a, mut b) = pair();
    a.request(at(0), 1).unwrap();
    a.request(at(0), 2).unwrap();
    let sent = a.drain(at(0));
    let incoming = only_request(&[b.receive(at(0), &sent[0].1).outcome]);
    b.respond(at(1), incoming, b"one").unwrap();
    b.drain(at(1));
    // The answer is lost with the session; both lines move to another.
    a.next_packet = 0;
    a.line.taken_over();
    let again = a.drain(at(100));
    assert_eq!([&again[0].1, &again[1].1], [&sent[0].1, &sent[1].1]);
    assert_eq!(b.receive(at(101), &again[0].1).outcome, Outcome::Repeated);
    let second = only_request(&[b.receive(at(101), &again[1].1).outcome]);
    b.respond(at(101), second, b"two").unwrap();
    let outcomes = carry(at(102), &mut b, &mut a);
    assert!(matches!(outcomes[..], [Outcome::Response { user: 1, .. }, Outcome::Response { user: 2, .. }]));
    assert_eq!(a.line.round_trip(), None, "nobody knows to which of the two the answer belongs");
}

/// A line at rest counts handshakes as well: what it says next is said after them.
#[test]
fn what_a_line_at_rest_says_after_a_renewal_is_not_said_again_by_one_who_remembers_that() {
    let (mut a, mut b) = pair();
    a.line.renewed();
    a.request(at(0), 1).unwrap();
    let sent = a.drain(at(0));
    let incoming = only_request(&[b.receive(at(0), &sent[0].1).outcome]);
    b.tick(at(60));
    carry(at(60), &mut b, &mut a);
    a.line.renewed();
    a.with(at(70), |line, cx| line.remembered_since(cx, 1));
    assert_eq!(a.drain(at(70)), [], "it is with the peer");
    b.respond(at(80), incoming, b"one").unwrap();
    let outcomes = carry(at(80), &mut b, &mut a);
    assert!(matches!(outcomes[..], [Outcome::Response { user: 1, .. }]), "{outcomes:?}");
}

#[test]
fn observations_last_until_they_are_forgotten() {
    let (mut a, mut b) = pair();
    let mut options = OptionSet::new();
    options.add_uint(OptionNumber::OBSERVE, 0).unwrap();
    let parts = RequestParts {
        code: Code::GET,
        options: &options,
        payload: &[],
        is_confirmable: true,
        is_repeatable: false,
        is_observe: true,
        deadline: at(5000),
        user: 3,
    };
    let id = a.with(at(0), |line, cx| line.request(cx, &parts)).unwrap();
    let incoming = only_request(&carry(at(0), &mut a, &mut b));
    let response = ResponseParts { code: Code::CONTENT, options: &options, payload: b"1" };
    b.with(at(1), |line, cx| line.respond(cx, incoming, &response)).unwrap();
    assert_eq!(carry(at(1), &mut b, &mut a), [Outcome::Response { id, user: 3, is_last: false }]);
    a.tick(at(6000));
    assert_eq!(a.events(), []);

    let notify = |b: &mut Side, now, is_confirmable, user| {
        let parts = NotifyParts { token: id.token(), response, is_confirmable, user };
        b.with(now, |line, cx| line.notify(cx, &parts)).unwrap()
    };
    assert_eq!(notify(&mut b, at(7000), true, 70), None);
    assert_eq!(carry(at(7000), &mut b, &mut a), [Outcome::Response { id, user: 3, is_last: false }]);
    assert_eq!(carry(at(7001), &mut a, &mut b), [Outcome::Done]);
    assert_eq!(b.events(), [LineEvent::Notified { user: 70 }]);

    assert!(a.with(at(8000), |line, cx| line.forget(cx, id)));
    let mid = notify(&mut b, at(8000), false, 80).unwrap();
    assert_eq!(carry(at(8000), &mut b, &mut a), [Outcome::Unmatched]);
    assert_eq!(carry(at(8001), &mut a, &mut b), [Outcome::Reset(mid)]);
    notify(&mut b, at(9000), true, 90);
    carry(at(9000), &mut b, &mut a);
    carry(at(9001), &mut a, &mut b);
    assert_eq!(b.events(), [LineEvent::NotifyFailed { user: 90, reason: Failure::Reset }]);
    assert!(a.line.is_idle());
}

#[test]
fn an_idle_line_is_small() {
    assert!(size_of::<Line>() <= 72, "{}", size_of::<Line>());
}

#[test]
fn steady_traffic_circulates_the_same_buffers() {
    let (mut a, mut b) = pair();
    for user in 0..1000 {
        let now = at(user);
        a.request(now, user).unwrap();
        let incoming = only_request(&carry(now, &mut a, &mut b));
        b.respond(now, incoming, b"yes").unwrap();
        carry(now, &mut b, &mut a);
        assert!(a.line.is_idle());
        assert_eq!(a.pool.len(), 1);
    }
    // One answer for each of the last W requests, and no more.
    let busy = b.line.busy.as_ref().unwrap();
    assert_eq!(busy.incoming.answers(), MID_WINDOW);
}

#[test]
fn sixty_five_thousand_requests_go_past_a_slow_one() {
    let (mut a, mut b) = pair();
    let far = Time::from_micros(1 << 50);
    let slow = a.request_by(at(0), 1 << 40, true, far).unwrap();
    let waiting = only_request(&carry(at(0), &mut a, &mut b));
    b.tick(at(50));
    carry(at(50), &mut b, &mut a);
    for user in 0..66_000 {
        let now = at(100 + user);
        a.request(now, user).unwrap();
        let outcomes = carry(now, &mut a, &mut b);
        b.respond(now, only_request(&outcomes), b"").unwrap();
        assert!(matches!(carry(now, &mut b, &mut a)[..], [Outcome::Response { is_last: true, .. }]));
    }
    let now = at(70_000);
    b.respond(now, waiting, b"at last").unwrap();
    assert_eq!(carry(now, &mut b, &mut a), [Outcome::Response { id: slow, user: 1 << 40, is_last: true }]);
    carry(now, &mut a, &mut b);
    assert!(a.line.is_idle() && b.line.is_idle());
}

#[test]
fn handlers_that_wait_for_each_other_are_answered() {
    // Each side has more slow requests open than its Message IDs can run ahead, then everybody answers.
    let config = LineConfig { max_incoming: 400, max_waiting: 400, ..LineConfig::default() };
    let mut sides = [Side::new(1, 0, &config), Side::new(2, 65_400, &config)];
    let mut open = [Vec::new(), Vec::new()];
    for side in &mut sides {
        (0..300).for_each(|user| assert!(side.request(at(0), user).is_ok()));
    }
    let mut answered = 0;
    for step in 0..200 {
        let now = at(step * 60);
        for from in 0..2 {
            let [a, b] = &mut sides;
            let (from_side, to_side) = if from == 0 { (a, b) } else { (b, a) };
            for outcome in carry(now, from_side, to_side) {
                match outcome {
                    Outcome::Request(id) => open[1 - from].push(id),
                    Outcome::Response { .. } => answered += 1,
                    _ => {}
                }
            }
            to_side.tick(now);
        }
        if open.iter().all(|open| open.len() == 300) {
            for (side, open) in sides.iter_mut().zip(&mut open) {
                for id in open.drain(..) {
                    side.respond(now, id, b"").unwrap();
                }
            }
        }
    }
    assert_eq!(answered, 600);
}
