//! Round keys of a busy session: making them from the raw keys costs as much as sealing a small packet.
use super::keys::{OpenCipher, OpenKey, SealCipher, SealKey};

/// The round keys of one session, both ways, made at first use. They clear themselves when they are dropped or
/// replaced. About 2 kB: a net keeps few of them.
#[derive(Default)]
pub struct Ciphers {
    seal: Option<SealCipher>,
    open: Option<OpenCipher>,
    /// A packet came since somebody looked whether they may go.
    is_used: bool,
}

impl Ciphers {
    pub(super) fn seal(&mut self, key: &SealKey) -> &SealCipher {
        self.seal.get_or_insert_with(|| key.expand())
    }

    pub(super) fn open(&mut self, key: &OpenKey) -> &OpenCipher {
        self.open.get_or_insert_with(|| key.expand())
    }

    /// The keys changed, or the place goes to another session.
    pub(super) fn clear(&mut self) {
        self.seal = None;
        self.open = None;
        self.is_used = false;
    }

    pub(super) fn touch(&mut self) -> bool {
        self.is_used = true;
        true
    }

    pub(super) fn untouch(&mut self) -> bool {
        core::mem::take(&mut self.is_used)
    }
}
