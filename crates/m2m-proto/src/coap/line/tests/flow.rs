//! How many messages leave, when, and in which order.
use super::*;

fn pair(config: &LineConfig) -> (Side, Side) {
    (Side::new(1, 100, config), Side::new(2, 500, config))
}

/// Answers at once all that `from` sends, but for what `is_lost` says, and delivers the answers.
fn exchange(now: Time, from: &mut Side, to: &mut Side, is_lost: impl Fn(Mid) -> bool) -> usize {
    let sent = from.drain(now);
    for (_, bytes) in sent.iter().filter(|(_, bytes)| !is_lost(Message::parse(bytes).unwrap().mid())) {
        if let Outcome::Request(id) = to.receive(now, bytes).outcome {
            to.respond(now, id, b"").unwrap();
        }
    }
    for (_, bytes) in to.drain(now) {
        from.receive(now, &bytes);
    }
    sent.len()
}

fn ask(side: &mut Side, now: Time, count: u64) {
    (0..count).for_each(|user| assert!(side.request_by(now, user, true, at(100_000)).is_ok()));
}

#[test]
fn one_lost_message_holds_up_what_would_outrun_the_memory() {
    let config = LineConfig { max_waiting: 1000, max_requests: 1000, ..LineConfig::default() };
    let (mut a, mut b) = pair(&config);
    ask(&mut a, at(0), 900);
    let mut widest = 0;
    for step in 0..90_000 {
        let now = at(step);
        a.tick(now);
        exchange(now, &mut a, &mut b, |mid| mid == Mid(100));
        widest = widest.max(a.span());
    }
    assert_eq!(widest, MID_WINDOW);
    assert!(a.line.is_idle() || a.events().len() == 1);
}

#[test]
fn nothing_new_is_sent_into_silence() {
    let (mut a, mut b) = pair(&LineConfig::default());
    ask(&mut a, at(0), 30);
    let first = a.drain(at(0));
    assert_eq!(first.len(), 10);
    while a.line.next_timeout() < at(15_000) {
        let now = a.line.next_timeout();
        a.tick(now);
        let again = a.drain(now);
        assert!(
            again.iter().all(|(_, bytes)| first.iter().any(|(_, sent)| sent == bytes)),
            "{:?}",
            shown(&again)
        );
    }
    assert_eq!(a.line.busy.as_ref().unwrap().congestion.window(256), 1);
    // One that gets through shows that the path is back: the others no longer hold up what never left.
    for step in 0..300 {
        let now = at(15_000 + step * 20);
        a.tick(now);
        exchange(now, &mut a, &mut b, |mid| mid.since(Mid(100)) < 5);
    }
    assert!(a.line.in_flight() <= 10 && a.events().is_empty());
    assert_eq!(a.line.busy.as_ref().unwrap().outgoing.waiting().0, 0);
    for step in 0..3000 {
        let now = at(21_000 + step * 20);
        a.tick(now);
        exchange(now, &mut a, &mut b, |_| false);
    }
    assert_eq!((a.line.is_idle(), a.events()), (true, Vec::new()));
}

#[test]
fn acknowledgements_do_not_wait_for_the_window() {
    let (mut a, mut b) = pair(&LineConfig::default());
    ask(&mut a, at(0), 20);
    assert_eq!(a.drain(at(0)).len(), 10);
    ask(&mut b, at(0), 3);
    for (_, bytes) in b.drain(at(0)) {
        let Outcome::Request(id) = a.receive(at(1), &bytes).outcome else { panic!("it is new") };
        a.respond(at(1), id, b"").unwrap();
    }
    let sent = a.drain(at(1));
    assert_eq!(shown(&sent), ["Ack 2.04 500", "Ack 2.04 501", "Ack 2.04 502"]);
}

#[test]
fn a_refusal_for_overload_slows_down() {
    let (mut a, mut b) = pair(&LineConfig { max_incoming: 9, ..LineConfig::default() });
    ask(&mut a, at(0), 40);
    let mut open = Vec::new();
    for (_, bytes) in a.drain(at(0)) {
        if let Outcome::Request(id) = b.receive(at(1), &bytes).outcome {
            open.push(id);
        }
    }
    let [refusal] = &b.drain(at(1))[..] else { panic!("nine are open, the tenth is refused") };
    a.receive(at(2), &refusal.1);
    assert_eq!(a.drain(at(2)).len(), 0, "the window was halved");
    for id in open.drain(..5) {
        b.respond(at(3), id, b"").unwrap();
    }
    for (_, bytes) in b.drain(at(3)) {
        a.receive(at(4), &bytes);
    }
    assert_eq!((a.line.in_flight(), a.drain(at(4)).len()), (4, 1));
}

#[test]
fn what_is_spread_leaves_at_once_before_the_end() {
    let (mut a, mut b) = pair(&LineConfig::default());
    a.line.add_round_trip(at(0), Duration::from_millis(100));
    ask(&mut a, at(0), 100);
    assert_eq!(exchange(at(0), &mut a, &mut b, |_| false), 10);
    assert_eq!(a.drain(at(1)).len(), 10);
    let next = a.line.next_timeout();
    assert!(next > at(1) && next < at(100), "{next:?}");
    a.line.hurry();
    assert_eq!(a.drain(at(1)).len(), 10);
}

#[test]
fn the_window_is_kept_for_a_timeout_and_then_its_memory_is_freed() {
    let (mut a, mut b) = pair(&LineConfig::default());
    a.line.add_round_trip(at(0), Duration::from_millis(1));
    ask(&mut a, at(1000), 60);
    while exchange(at(1000), &mut a, &mut b, |_| false) > 0 {}
    assert!(a.line.is_idle());
    a.tick(at(1150));
    ask(&mut a, at(1150), 60);
    assert!(exchange(at(1150), &mut a, &mut b, |_| false) > 20);
    while exchange(at(1150), &mut a, &mut b, |_| false) > 0 {}
    while a.line.busy.is_some() {
        let next = a.line.next_timeout();
        assert!(next < at(2000), "{next:?}");
        a.tick(next);
    }
    assert_eq!(a.line.next_timeout(), Time::NEVER);
}
