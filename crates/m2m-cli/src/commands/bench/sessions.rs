//! `m2m bench sessions`: what it costs a server to hold many idle sessions.
use m2m_proto::session::handshake::Established;

use super::peers::Handshakes;
use super::{Secrets, progress};
use crate::exit::Failure;
use crate::output::Output;

/// Sessions that are opened between two words about it.
const STEP: u32 = 2_000;

/// Opens so many sessions.
pub(super) fn open(
    handshakes: &mut Handshakes,
    secrets: &mut Secrets,
    count: u32,
    output: Output,
    mut done: impl FnMut(&Established, &mut Vec<u8>),
) -> Result<(), Failure> {
    let mut opened = 0;
    while opened < count {
        let step = STEP.min(count - opened);
        handshakes.prepare(secrets, step)?;
        handshakes.run(|| false, &mut done)?;
        opened += step;
        progress(output, &format!("{opened} of {count} sessions"));
    }
    progress(output, "");
    Ok(())
}
