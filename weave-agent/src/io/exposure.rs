//! The host itself on the network: its addresses, and the NAT behind them.

use ipnet::IpNet;
use tokio::sync::Mutex;

use super::api::{Answer, Refusal, answer, body};
use super::hands::{Hands, bare, log_unannounced, refused_attach, refused_detach};
use super::net::nat::{self, NatError};
use super::net::{self, Attached, EXPOSE_IFNAME, EXPOSE_PORT, Netns};

/// Whoever changes the exposed addresses or their NAT reads them first.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

impl Hands {
    /// `POST /expose`
    pub async fn expose(&self, asked: body::Expose) -> Answer {
        let _turn = ONE_AT_A_TIME.lock().await;
        let (before, has) = {
            let state = self.state.borrow();
            (state.masqueraded.clone(), state.exposed.clone())
        };
        let name = asked.name.as_deref().map(|name| self.qualified(name)).transpose()?;
        let lease = self.leases.take(EXPOSE_PORT, &asked.addresses, &has).await?;
        let masqueraded = with(&before, &lease.all, asked.no_masq);
        // NAT first: no packet goes out under a name that nobody answers to.
        let (notes, exposed) = match self.expose_masqueraded(&lease.all, &masqueraded).await {
            Ok(done) => done,
            Err(refusal) => {
                log_stale(nat::apply(&before).await);
                self.leases.give_back(EXPOSE_PORT, &lease.addresses).await;
                return Err(refusal);
            }
        };
        self.register(EXPOSE_PORT, name, &exposed.port.addrs).await;
        self.state.send_modify(|state| {
            state.exposed.clone_from(&exposed.port.addrs);
            state.masqueraded = masqueraded;
        });
        let changed = body::Changed { changed: exposed.added, addresses: exposed.port.addrs };
        answer(&body::Exposed { changed, notes })
    }

    async fn expose_masqueraded(&self, addresses: &[IpNet], masqueraded: &[IpNet]) -> Result<(Vec<String>, Attached), Refusal> {
        let notes = nat::apply(masqueraded).await.map_err(refused_nat)?;
        Ok((notes, self.expose_now(addresses).await?))
    }

    /// `POST /hide`
    pub async fn hide(&self, asked: body::Hide) -> Answer {
        let _turn = ONE_AT_A_TIME.lock().await;
        let hidden = net::hide(&self.host, &bare(&asked.addresses)).await.map_err(refused_detach)?;
        self.state.send_modify(|state| {
            state.exposed.clone_from(&hidden.left);
            if hidden.left.is_empty() {
                state.names.remove(EXPOSE_PORT);
            }
            state.masqueraded.retain(|net| hidden.left.iter().any(|left| left.addr() == net.addr()));
        });
        let masqueraded = self.state.borrow().masqueraded.clone();
        let nat = nat::apply(&masqueraded).await;
        // The address is gone whatever became of its rules.
        let answer = self.gone(hidden).await;
        nat.map_err(refused_nat)?;
        answer
    }

    /// What an agent before us exposed: after a reboot the host has lost it.
    pub async fn expose_again(&self) {
        let _turn = ONE_AT_A_TIME.lock().await;
        let (addresses, masqueraded) = {
            let state = self.state.borrow();
            (state.exposed.clone(), state.masqueraded.clone())
        };
        if let Err(error) = nat::apply(&masqueraded).await {
            tracing::error!("cannot masquerade again what the host exposes: {error}");
        }
        if addresses.is_empty() {
            return;
        }
        if let Err(refusal) = self.expose_now(&addresses).await {
            tracing::error!("cannot expose the host again: {refusal}");
        }
    }

    async fn expose_now(&self, addresses: &[IpNet]) -> Result<Attached, Refusal> {
        let exposed = net::expose_knowing(&self.host, addresses, self.mtu().await, &self.known).await.map_err(refused_attach)?;
        self.plug(&exposed.port).await?;
        let host = Netns::own().map_err(Refusal::internal)?;
        log_unannounced(net::announce(&host, EXPOSE_IFNAME, exposed.port.mac, &exposed.added).await, "the host");
        Ok(exposed)
    }
}

/// What is masqueraded once that is done: the last word on an address counts.
fn with(before: &[IpNet], addresses: &[IpNet], no_masq: bool) -> Vec<IpNet> {
    let mut all: Vec<IpNet> = before.iter().copied().filter(|net| addresses.iter().all(|new| new.addr() != net.addr())).collect();
    if !no_masq {
        all.extend(addresses);
    }
    all
}

fn refused_nat(error: NatError) -> Refusal {
    Refusal::internal(error)
}

fn log_stale(undone: Result<Vec<String>, NatError>) {
    if let Err(error) = undone {
        tracing::error!("NAT rules of an address that could not be exposed are left: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_an_address_says_whether_it_is_masqueraded() {
        let nets = |text: &str| text.split_whitespace().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let with = |before, addresses, no_masq| super::with(&nets(before), &nets(addresses), no_masq);
        assert_eq!(with("", "10.32.0.1/16", false), nets("10.32.0.1/16"));
        assert_eq!(with("10.32.0.1/16", "10.32.0.1/16 fd00::1/64", false), nets("10.32.0.1/16 fd00::1/64"));
        assert_eq!(with("10.32.0.1/16 fd00::1/64", "10.32.0.1/16", true), nets("fd00::1/64"));
    }
}
