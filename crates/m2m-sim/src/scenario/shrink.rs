//! Makes a failing plan small: leaves out doings (in halves first, as ddmin does: Zeller and Hildebrandt, "Simplifying and
//! isolating failure-inducing input", 2002), then nets and faults, as long as it still fails.
use m2m_proto::time::Duration;

use super::plan::{Doing, Plan};
use crate::{Faults, NetIndex};

/// The smallest plan found that `fails`, as `plan` does; `may_go_on` ends the search.
pub fn shrink(
    plan: &Plan,
    mut fails: impl FnMut(&Plan) -> bool,
    mut may_go_on: impl FnMut() -> bool,
) -> Plan {
    let mut best = plan.clone();
    let mut fails = |plan: &Plan| may_go_on() && fails(plan);
    loop {
        let before = best.clone();
        drop_doings(&mut best, &mut fails);
        drop_nets(&mut best, &mut fails);
        calm(&mut best, &mut fails);
        if best == before {
            return best;
        }
    }
}

fn drop_doings(best: &mut Plan, fails: &mut impl FnMut(&Plan) -> bool) {
    let mut size = best.doings.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        while start < best.doings.len() {
            let mut shorter = best.clone();
            shorter.doings.drain(start..(start + size).min(best.doings.len()));
            if fails(&shorter) {
                *best = shorter;
            } else {
                start += size;
            }
        }
        size /= 2;
    }
}

fn drop_nets(best: &mut Plan, fails: &mut impl FnMut(&Plan) -> bool) {
    for index in (0..best.nets.len()).rev().map(NetIndex) {
        let mut fewer = best.clone();
        fewer.nets[index.0] = None;
        fewer.doings.retain(|planned| !planned.doing.nets().contains(&Some(index)));
        fewer.nets.iter_mut().flatten().for_each(|net| net.hosts.retain(|host| *host != index));
        if best.net(index).is_some() && fails(&fewer) {
            *best = fewer;
        }
    }
}

/// Takes away faults, NATs and wrong clocks, one at a time, and the time in which nothing happens.
fn calm(best: &mut Plan, fails: &mut impl FnMut(&Plan) -> bool) {
    let calmer: [fn(&mut Plan); 8] = [
        |plan| plan.faults = Faults::default(),
        |plan| plan.faults.loss = 0,
        |plan| plan.faults.duplicate = 0,
        |plan| plan.faults.corrupt = 0,
        |plan| plan.faults.jitter = Duration::ZERO,
        |plan| plan.nets.iter_mut().flatten().for_each(|net| net.nat = None),
        |plan| plan.nets.iter_mut().flatten().for_each(|net| net.clock_ms = 0),
        |plan| {
            let last = plan.doings.iter().map(|planned| planned.at).max().unwrap_or_default();
            // One that is suspended goes on when the chaos ends.
            let ends = plan.doings.iter().map(|planned| match planned.doing {
                Doing::Suspend { time, .. } => planned.at + time,
                _ => planned.at,
            });
            let end = ends.max().unwrap_or_default().max(last) + Duration::from_secs(1);
            plan.chaos = end.min(plan.chaos);
        },
    ];
    for change in calmer {
        let mut calm = best.clone();
        change(&mut calm);
        if calm != *best && fails(&calm) {
            *best = calm;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{plan::Planned, throw::throw};
    use super::*;

    /// A large plan that fails if these two doings are in it, in a lossy network.
    #[test]
    fn what_matters_stays_and_the_rest_goes() {
        let plan = (0..).map(throw).find(|plan| plan.doings.len() > 60 && plan.faults.loss > 0);
        let plan = plan.expect("some plan is large");
        let [first, second] = [7, 40].map(|n| plan.doings[n]);
        let matters = |plan: &Plan| {
            let has = |wanted: &Planned| plan.doings.contains(wanted);
            plan.faults.loss > 0 && has(&first) && has(&second)
        };
        let mut runs = 0;
        let small = shrink(
            &plan,
            |plan| {
                runs += 1;
                matters(plan)
            },
            || true,
        );
        assert_eq!(small.doings, [first, second]);
        assert_eq!((small.faults.duplicate, small.faults.corrupt), (0, 0));
        assert!(small.faults.loss > 0 && small.present().count() <= 4);
        assert!(runs < 300, "{runs} runs");
    }

    #[test]
    fn it_ends_when_it_may_not_go_on() {
        let plan = throw(3);
        let mut left = 5;
        let go_on = || {
            left -= 1;
            left >= 0
        };
        let small = shrink(&plan, |_| true, go_on);
        assert!(small.doings.len() < plan.doings.len());
    }
}
