//! Endurance: `cargo xtask soak --minutes N [--seed S] [--rate N]`.
//!
//! Two hosts, nine devices, six apps and a stream of visitors on real sockets, with the real runtime, behind gates that
//! lose, repeat, delay and damage packets and change addresses. Nets die and come back, keys and tokens change, strangers
//! and guests send what they should not; and all the while a few hundred requests a second are asked and answered.
//!
//! Three things are judged: that the ledger of requests balances ([`ledger`]), that nothing grows ([`watch`]), and that
//! everybody who should reach somebody does so once the weather is fair: every ten minutes and at the end.
//!
//! ```text
//!  director ─ deaths, outages, moves, keys, visitors        hostile ─ strangers, guests
//!     │                                                        │
//!  actor ── gate ── host │ child (a process of its own) ── gate ── actor
//!     └── traffic ── ledger                                  watch
//! ```
//!
//! One thread, and one of the other host's; a fraction of a core. Clocks here stand still while the machine has no time for
//! this process, so that it may be starved or stopped without being wronged.
#![forbid(unsafe_code)]

mod actor;
mod child;
mod dice;
mod director;
mod gate;
mod hostile;
mod insider;
mod ledger;
mod report;
mod traffic;
mod watch;
mod world;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use dice::Dice;
use director::Director;
use gate::Weather;
use ledger::Books;
use traffic::Traffic;
use watch::Watch;
use world::{Failure, World};

/// Between two moments of fair weather.
const SPELL: Duration = Duration::from_secs(600);
/// Within this everybody must be reached again in fair weather: a peer is given up after 60 s of silence, and another
/// handshake follows.
const FAIR: Duration = Duration::from_secs(120);
const SAMPLE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(250);
/// What a longer gap between ticks is counted as: nobody could act in it.
const MOST_TICK: Duration = Duration::from_secs(1);
/// After the last net is closed its tasks may take so long to end.
const LEAVE: Duration = Duration::from_secs(15);

struct Options {
    lasts: Duration,
    seed: u64,
    rate: u64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if words.first().is_some_and(|word| word == child::ROLE) {
        child::run(&words[1..]);
        return ExitCode::SUCCESS;
    }
    let options = match options(&words) {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}\nsoak [--minutes N] [--seed S] [--rate REQUESTS-A-SECOND]");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio starts");
    match runtime.block_on(soak(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("the soak could not go on: {why}");
            ExitCode::FAILURE
        }
    }
}

fn options(words: &[String]) -> Result<Options, String> {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let mut options = Options { lasts: Duration::from_secs(120), seed: since.as_millis() as u64, rate: 200 };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a number after it"))?;
        let number: u64 = value.parse().map_err(|_| format!("{word} needs a number, not {value}"))?;
        match word.as_str() {
            "--minutes" => options.lasts = Duration::from_secs(60 * number.clamp(1, 7 * 24 * 60)),
            "--seed" => options.seed = number,
            "--rate" => options.rate = number.clamp(1, 2000),
            other => return Err(format!("soak knows no option {other}")),
        }
    }
    Ok(options)
}

/// The run; true if nothing was found.
async fn soak(options: &Options) -> Result<bool, Failure> {
    println!("soak of {} minutes, seed {}", options.lasts.as_secs() / 60, options.seed);
    // The runtime's own descriptors are open from the first socket on.
    drop(tokio::net::UdpSocket::bind(gate::local(0, 0)).await?);
    let (tasks, descriptors) = (alive_tasks(), watch::descriptors());
    let mut dice = Dice::new(options.seed);
    let books = Books::new(options.rate, options.rate * options.lasts.as_secs() * 5 / 4);
    let folder = tempfile::tempdir()?;
    let world = Arc::new(World::open(&books, folder.path(), &mut dice).await?);
    let traffic = Traffic::new(&books);
    let watch = Arc::new(Mutex::new(Watch::new(options.lasts + FAIR, SAMPLE)));
    let clerk = tokio::spawn(keep_time(books.clone()));
    let watcher = tokio::spawn(look_on(world.clone(), watch.clone()));
    let talk = tokio::spawn(traffic.clone().run(world.links.clone(), options.rate, dice.fork()));
    let mut director = Director::new(&world, &traffic, dice.fork());
    let end = Instant::now() + options.lasts;
    loop {
        let spell = SPELL.min(end.saturating_duration_since(Instant::now()));
        play(&world, &mut director, spell, &mut dice).await?;
        for words in traffic.reach_all(&world.links, FAIR, &mut dice).await {
            books.open().tell(&words);
        }
        if Instant::now() >= end {
            break;
        }
    }
    end_task(talk).await;
    wait_until(Duration::from_secs(60), || books.open().outstanding() == 0).await;
    end_task(watcher).await;
    world.close().await;
    end_task(clerk).await;
    let (counters, network) = (world.counters(), world.network.clone());
    drop((director, world, traffic));
    look_for_leaks(&books, tasks, descriptors).await;
    books.open().finish();
    let watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(report::summary(&books.open(), &network, &counters, &watch))
}

/// Trouble of all kinds for so long; then everybody is back and the weather is fair.
async fn play(
    world: &Arc<World>,
    director: &mut Director,
    lasts: Duration,
    dice: &mut Dice,
) -> Result<(), Failure> {
    let trouble = [
        tokio::spawn(director::weather(world.clone(), dice.fork())),
        tokio::spawn(hostile::Stranger::new(world, dice.fork()).await?.run()),
        tokio::spawn(hostile::guests(world.clone(), dice.fork())),
    ];
    director.run(lasts).await;
    for task in trouble {
        end_task(task).await;
    }
    world.network.set_weather(Weather::CALM);
    world.books.note("changes of weather", None, "fair");
    Ok(())
}

async fn end_task(task: JoinHandle<()>) {
    task.abort();
    // It was aborted, or it panicked, which has been told already.
    let _ = task.await;
}

/// Tells the ledger how time goes by, as far as this process was awake.
async fn keep_time(books: Books) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        tick.tick().await;
        let gap = last.elapsed();
        last += gap;
        let mut ledger = books.open();
        if gap > MOST_TICK {
            *ledger.happenings.entry("seconds without a turn on the CPU").or_default() += gap.as_secs();
        }
        ledger.pass_time(gap.min(MOST_TICK));
        ledger.look_for_overdue();
    }
}

/// Takes samples, and says once a minute what was done.
async fn look_on(world: Arc<World>, watch: Arc<Mutex<Watch>>) {
    let mut tick = interval(SAMPLE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (began, mut minute) = (Instant::now(), 1);
    loop {
        tick.tick().await;
        // What is asked now is answered by the next time.
        let mut sample = world.sample();
        world.child.ask();
        sample.memory = watch::memory_kib(std::process::id()).unwrap_or(0);
        sample.descriptors = watch::descriptors();
        sample.tasks = alive_tasks();
        watch.lock().unwrap_or_else(PoisonError::into_inner).add(sample);
        if began.elapsed() >= Duration::from_secs(60 * minute) {
            println!("{}", report::line(minute, &world.books.open(), &sample));
            minute = began.elapsed().as_secs() / 60 + 1;
        }
    }
}

fn alive_tasks() -> u64 {
    tokio::runtime::Handle::current().metrics().num_alive_tasks() as u64
}

/// Once all is closed nothing may be left of it.
async fn look_for_leaks(books: &Books, tasks: u64, descriptors: u64) {
    wait_until(LEAVE, || alive_tasks() <= tasks && watch::descriptors() <= descriptors).await;
    let (tasks_left, descriptors_left) = (alive_tasks(), watch::descriptors());
    if tasks_left > tasks || descriptors_left > descriptors {
        books.open().tell(&format!(
            "after the last net was closed {tasks_left} tasks and {descriptors_left} file descriptors are left, \
             before the first there were {tasks} and {descriptors}"
        ));
    }
}

async fn wait_until(patience: Duration, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() && began.elapsed() < patience {
        sleep(Duration::from_millis(100)).await;
    }
}
