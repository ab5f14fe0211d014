//! A plan as text, one line a doing, so that a failure can be read, kept and run again:
//!
//! ```text
//! seed 4711
//! faults loss=30 duplicate=0 corrupt=0 delay=0.04 jitter=0.02
//! chaos 20
//! net 0 host suites=1
//! net 1 suites=1,2 hosts=0 nat=130
//! 12.345 #3 request 1>0 POST len=40 deadline=12 answer=8 after=0.05 way=host
//! ```
use std::fmt::Write;

use m2m_proto::{coap::code::Code, time::Duration, wire::packet::Suite};

use super::plan::{Asking, Doing, Length, Meddling, NetPlan, Plan, Planned, Prank, Trick, Way};
use crate::{Faults, NetIndex, world::Prey};

/// Methods that a script can name.
const METHODS: [Code; 7] =
    [Code::GET, Code::POST, Code::PUT, Code::DELETE, Code::FETCH, Code::PATCH, Code::IPATCH];

/// The text of a plan.
pub fn write(plan: &Plan) -> String {
    let Faults { loss, duplicate, corrupt, delay, jitter } = plan.faults;
    let mut text = format!(
        "seed {}\nfaults loss={loss} duplicate={duplicate} corrupt={corrupt} delay={} jitter={}\nchaos {}\n",
        plan.seed,
        seconds(delay),
        seconds(jitter),
        seconds(plan.chaos)
    );
    for (index, net) in plan.present() {
        let suites: Vec<_> = net.suites.iter().map(|suite| suite.number().to_string()).collect();
        let _ = write!(text, "net {}{} suites={}", index.0, word(net.is_host, "host"), suites.join(","));
        if !net.hosts.is_empty() {
            let hosts: Vec<_> = net.hosts.iter().map(|host| host.0.to_string()).collect();
            let _ = write!(text, " hosts={}", hosts.join(","));
        }
        if let Some(forgets) = net.nat {
            let _ = write!(text, " nat={}", seconds(forgets));
        }
        if net.clock_ms != 0 {
            let _ = write!(text, " clock={}", net.clock_ms);
        }
        text.push('\n');
    }
    let mut doings = plan.doings.clone();
    doings.sort_by_key(|planned| (planned.at, planned.number));
    for Planned { at, number, doing } in doings {
        let _ = writeln!(text, "{} #{number} {}", seconds(at), words_of(&doing));
    }
    text
}

fn words_of(doing: &Doing) -> String {
    match *doing {
        Doing::Request(ref asking) => words_of_request(asking),
        Doing::Close { net, which } => format!("close {} which={which}", net.0),
        Doing::Ping { net, which } => format!("ping {} which={which}", net.0),
        Doing::LookUp { net, about } => format!("lookup {} about={}", net.0, about.0),
        Doing::Rekey { net, which, secret } => {
            format!("rekey {} which={which}{}", net.0, word(secret, "secret"))
        }
        Doing::Refresh { net, which } => format!("refresh {} which={which}", net.0),
        Doing::NetKey { net, which } => format!("netkey {} which={which}", net.0),
        Doing::Kill { net } => format!("kill {}", net.0),
        Doing::Start { net, keeps_disk } => format!("start {}{}", net.0, word(keeps_disk, "keeps-disk")),
        Doing::Disk { net, full } => format!("disk {}{}", net.0, word(full, "full")),
        Doing::Store { net, delay } => format!("store {} delay={}", net.0, seconds(delay)),
        Doing::Rebind { net, moves } => format!("rebind {}{}", net.0, word(moves, "moves")),
        Doing::Suspend { net, time, clock_stops, datagrams_first } => format!(
            "suspend {} time={}{}{}",
            net.0,
            seconds(time),
            word(clock_stops, "clock-stops"),
            word(datagrams_first, "datagrams-first")
        ),
        Doing::Clock { net, ahead_ms } => format!("clock {} ahead={ahead_ms}", net.0),
        Doing::Cut { from, to, one_way, time } => {
            format!("cut {}>{} time={}{}", from.0, to.0, seconds(time), word(one_way, "one-way"))
        }
        Doing::Meddle(ref meddling) => words_of_meddling(meddling),
        Doing::Attack(trick) => {
            let name = Trick::ALL.iter().find(|(known, _)| *known == trick).map_or("", |(_, name)| name);
            format!("attack {name}")
        }
    }
}

fn words_of_request(asking: &Asking) -> String {
    let Asking { from, to, method, len, deadline, answer, after, cancel, .. } = *asking;
    let way = match asking.way {
        Way::Host => "host",
        Way::Direct => "direct",
        Way::Anyone => "anyone",
    };
    let after = after.map_or("never".into(), seconds);
    let cancel = cancel.map_or(String::new(), |cancel| format!(" cancel={}", seconds(cancel)));
    format!(
        "request {}>{} {} len={} deadline={} answer={} after={after} way={way}{cancel}{}{}{}",
        from.0,
        to.0,
        method.name().unwrap_or("POST"),
        length(len),
        seconds(deadline),
        length(answer),
        word(!asking.confirmable, "non"),
        word(asking.repeatable, "repeatable"),
        word(asking.opens, "opens"),
    )
}

fn words_of_meddling(meddling: &Meddling) -> String {
    let Meddling { from, to, prey, every, fate, time } = *meddling;
    let net =
        |name: &str, net: Option<NetIndex>| net.map_or(String::new(), |net| format!(" {name}={}", net.0));
    let fate = match fate {
        Prank::Drop => "drop".into(),
        Prank::Delay(more) => format!("delay={}", seconds(more)),
        Prank::Divert => "divert".into(),
    };
    let prey = match prey {
        Prey::Any => "any".into(),
        Prey::Long => "long".into(),
        Prey::Short => "short".into(),
        Prey::Kind(kind) => kind.to_string(),
    };
    let (from, to) = (net("from", from), net("to", to));
    format!("meddle {fate} prey={prey} every={every} time={}{from}{to}", seconds(time))
}

fn word(there: bool, word: &str) -> String {
    if there { format!(" {word}") } else { String::new() }
}

fn length(length: Length) -> String {
    match length {
        Length::Bytes(n) => n.to_string(),
        Length::Most => "most".into(),
        Length::TooLong => "too-long".into(),
    }
}

/// Seconds with as many decimals as are needed, down to microseconds.
fn seconds(time: Duration) -> String {
    let text = format!("{}.{:06}", time.as_secs(), time.subsec_micros());
    text.trim_end_matches('0').trim_end_matches('.').into()
}

/// The plan that a text stands for; else which line makes no sense, and why.
pub fn parse(text: &str) -> Result<Plan, String> {
    let mut plan = Plan {
        seed: 0,
        nets: Vec::new(),
        faults: Faults::default(),
        chaos: Duration::from_secs(10),
        doings: Vec::new(),
    };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")) {
        let mut words = Words(line.split_whitespace().collect());
        parse_line(&mut plan, &mut words)
            .and_then(|()| words.finish())
            .map_err(|why| format!("{line}: {why}"))?;
    }
    for Planned { doing, .. } in &plan.doings {
        if doing.nets().iter().flatten().any(|net| plan.net(*net).is_none()) {
            return Err(format!("there is no such net: {}", words_of(doing)));
        }
    }
    Ok(plan)
}

fn parse_line(plan: &mut Plan, words: &mut Words<'_>) -> Result<(), String> {
    match words.next()? {
        "seed" => plan.seed = number(words.next()?)?,
        "chaos" => plan.chaos = time(words.next()?)?,
        "faults" => {
            plan.faults = Faults {
                loss: words.number("loss")?,
                duplicate: words.number("duplicate")?,
                corrupt: words.number("corrupt")?,
                delay: words.time("delay")?,
                jitter: words.time("jitter")?,
            }
        }
        "net" => {
            let index: usize = number(words.next()?)?;
            let net = parse_net(words)?;
            if index >= 200 {
                return Err("a world holds fewer nets".into());
            }
            plan.nets.resize(plan.nets.len().max(index + 1), None);
            plan.nets[index] = Some(net);
        }
        at => {
            let at = time(at)?;
            let number = words.next()?.strip_prefix('#').ok_or("its number is missing, such as #3")?;
            let number = self::number(number)?;
            plan.doings.push(Planned { at, number, doing: parse_doing(words)? });
        }
    }
    Ok(())
}

fn parse_net(words: &mut Words<'_>) -> Result<NetPlan, String> {
    let suite = |n: &str| Suite::from_number(number(n)?).ok_or(format!("no suite {n}"));
    let mut net = NetPlan { is_host: words.flag("host"), ..NetPlan::default() };
    net.suites = words.value("suites")?.split(',').map(suite).collect::<Result<_, _>>()?;
    if let Some(hosts) = words.maybe("hosts") {
        net.hosts = hosts.split(',').map(|n| number(n).map(NetIndex)).collect::<Result<_, _>>()?;
    }
    net.nat = words.maybe("nat").map(time).transpose()?;
    net.clock_ms = words.maybe("clock").map_or(Ok(0), number)?;
    Ok(net)
}

fn parse_doing(words: &mut Words<'_>) -> Result<Doing, String> {
    let verb = words.next()?;
    match verb {
        "request" => return parse_request(words).map(Doing::Request),
        "meddle" => return parse_meddling(words).map(Doing::Meddle),
        "attack" => {
            let name = words.next()?;
            let trick = Trick::ALL.iter().find(|(_, known)| *known == name);
            return trick.map(|(trick, _)| Doing::Attack(*trick)).ok_or(format!("no attack {name}"));
        }
        "cut" => {
            let (from, to) = words.pair()?;
            let one_way = words.flag("one-way");
            return Ok(Doing::Cut { from, to, one_way, time: words.time("time")? });
        }
        _ => {}
    }
    let net = NetIndex(number(words.next()?)?);
    Ok(match verb {
        "close" => Doing::Close { net, which: words.number("which")? },
        "ping" => Doing::Ping { net, which: words.number("which")? },
        "lookup" => Doing::LookUp { net, about: NetIndex(words.number("about")?) },
        "rekey" => Doing::Rekey { net, secret: words.flag("secret"), which: words.number("which")? },
        "refresh" => Doing::Refresh { net, which: words.number("which")? },
        "netkey" => Doing::NetKey { net, which: words.number("which")? },
        "kill" => Doing::Kill { net },
        "start" => Doing::Start { net, keeps_disk: words.flag("keeps-disk") },
        "disk" => Doing::Disk { net, full: words.flag("full") },
        "store" => Doing::Store { net, delay: words.time("delay")? },
        "rebind" => Doing::Rebind { net, moves: words.flag("moves") },
        "suspend" => Doing::Suspend {
            net,
            clock_stops: words.flag("clock-stops"),
            datagrams_first: words.flag("datagrams-first"),
            time: words.time("time")?,
        },
        "clock" => Doing::Clock { net, ahead_ms: words.number("ahead")? },
        other => return Err(format!("nothing is called {other}")),
    })
}

fn parse_request(words: &mut Words<'_>) -> Result<Asking, String> {
    let (from, to) = words.pair()?;
    let method = words.next()?;
    let method = METHODS.into_iter().find(|known| known.name() == Some(method));
    let after = words.value("after")?;
    Ok(Asking {
        from,
        to,
        method: method.ok_or("no such method")?,
        len: words.length("len")?,
        confirmable: !words.flag("non"),
        repeatable: words.flag("repeatable"),
        deadline: words.time("deadline")?,
        opens: words.flag("opens"),
        way: match words.value("way")? {
            "host" => Way::Host,
            "direct" => Way::Direct,
            "anyone" => Way::Anyone,
            other => return Err(format!("no way {other}")),
        },
        answer: words.length("answer")?,
        after: if after == "never" { None } else { Some(time(after)?) },
        cancel: words.maybe("cancel").map(time).transpose()?,
    })
}

fn parse_meddling(words: &mut Words<'_>) -> Result<Meddling, String> {
    let fate = match words.maybe("delay") {
        Some(more) => Prank::Delay(time(more)?),
        None if words.flag("drop") => Prank::Drop,
        None if words.flag("divert") => Prank::Divert,
        None => return Err("what becomes of them: drop, divert or delay=…".into()),
    };
    let prey = match words.value("prey")? {
        "any" => Prey::Any,
        "long" => Prey::Long,
        "short" => Prey::Short,
        kind => Prey::Kind(number(kind)?),
    };
    let mut net = |name| words.maybe(name).map(|n| number(n).map(NetIndex)).transpose();
    let (from, to) = (net("from")?, net("to")?);
    Ok(Meddling { from, to, prey, every: words.number("every")?, fate, time: words.time("time")? })
}

/// The words of a line that nobody has read yet.
struct Words<'a>(Vec<&'a str>);

impl<'a> Words<'a> {
    fn next(&mut self) -> Result<&'a str, String> {
        if self.0.is_empty() { Err("a word is missing".into()) } else { Ok(self.0.remove(0)) }
    }

    /// True if the word is there.
    fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|word| *word != name);
        self.0.len() < before
    }

    /// What stands behind `name=`.
    fn maybe(&mut self, name: &str) -> Option<&'a str> {
        let value = |word: &&'a str| word.strip_prefix(name)?.strip_prefix('=');
        let (place, found) = self.0.iter().enumerate().find_map(|(n, word)| Some((n, value(word)?)))?;
        self.0.remove(place);
        Some(found)
    }

    fn value(&mut self, name: &str) -> Result<&'a str, String> {
        self.maybe(name).ok_or(format!("{name}= is missing"))
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<T, String> {
        number(self.value(name)?)
    }

    fn time(&mut self, name: &str) -> Result<Duration, String> {
        time(self.value(name)?)
    }

    fn length(&mut self, name: &str) -> Result<Length, String> {
        Ok(match self.value(name)? {
            "most" => Length::Most,
            "too-long" => Length::TooLong,
            n => Length::Bytes(number(n)?),
        })
    }

    /// `1>2`
    fn pair(&mut self) -> Result<(NetIndex, NetIndex), String> {
        let (from, to) = self.next()?.split_once('>').ok_or("from whom to whom, such as 1>2?")?;
        Ok((NetIndex(number(from)?), NetIndex(number(to)?)))
    }

    fn finish(&self) -> Result<(), String> {
        if self.0.is_empty() { Ok(()) } else { Err(format!("what is {}?", self.0.join(" "))) }
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text} is no number that fits"))
}

fn time(text: &str) -> Result<Duration, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 6 {
        return Err(format!("{text} is finer than microseconds"));
    }
    let micros: u32 = number(&format!("{part:0<6}"))?;
    Ok(Duration::from_secs(number(whole)?) + Duration::from_micros(micros.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for seed in 0..300 {
            let mut plan = super::super::throw::throw(seed);
            let text = write(&plan);
            plan.doings.sort_by_key(|planned| (planned.at, planned.number));
            assert_eq!(parse(&text), Ok(plan), "{text}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        let net = "net 0 suites=1\n";
        for (line, why) in [
            ("sea 1", "sea"),
            ("seed x", "x"),
            ("net 1", "suites="),
            ("net 1 suites=9", "no suite 9"),
            ("net 900 suites=1", "fewer"),
            ("1.5 kill 0", "#3"),
            ("1.5 #1 kill 7", "no such net"),
            ("1.5 #1 kill 0 twice", "what is twice?"),
            ("1.5 #1 dance 0", "dance"),
            ("1.1234567 #1 kill 0", "finer"),
            ("1 #1 request 0 POST", "1>2"),
            ("1 #1 attack moon", "moon"),
            ("1 #1 meddle prey=any every=1 time=3", "what becomes"),
        ] {
            let found = parse(&format!("{net}{line}")).expect_err(line);
            assert!(found.contains(why), "{line}: {found}");
        }
    }
}
