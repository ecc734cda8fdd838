# SPDX-License-Identifier: MIT
#
# Copy this directory to recipes-connectivity/wspush/ of a layer of yours, and
# say in local.conf where the sources are: WSPUSH_DIR = "/path/to/wspush".

SUMMARY = "WebSocket push server"
DESCRIPTION = "One line in a shell script pushes a message to the browsers \
that are connected, to one of them, to a group, or to all."
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

DEPENDS = "bearssl"

inherit externalsrc systemd update-rc.d useradd

EXTERNALSRC = "${WSPUSH_DIR}"
EXTERNALSRC_BUILD = "${WSPUSH_DIR}"

# OUT keeps the target's program apart from what was built for the host.
EXTRA_OEMAKE = "OUT=${WORKDIR}/wspush PREFIX=${prefix} \
    BEARSSL=${STAGING_DIR_TARGET}${prefix} \
    BEARSSL_LIBS=${STAGING_LIBDIR}/libbearssl.a"
TARGET_CFLAGS += "-ffunction-sections -fdata-sections"
TARGET_LDFLAGS += "-Wl,--gc-sections"

do_compile() {
    oe_runmake
}

do_install() {
    oe_runmake install DESTDIR=${D}
    if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
        install -d ${D}${systemd_system_unitdir}
        for unit in wspush.service wspush-wss.socket wspush-ws.socket \
            wspush-push.socket; do
            install -m 0644 ${S}/tools/systemd/$unit \
                ${D}${systemd_system_unitdir}/
        done
    fi
    install -d ${D}${sysconfdir}/init.d
    install -m 0755 ${S}/tools/buildroot/S50wspush \
        ${D}${sysconfdir}/init.d/wspush
}

# The socket units are there for who wants them; the service alone is enough.
SYSTEMD_SERVICE:${PN} = "wspush.service"
FILES:${PN} += "${systemd_system_unitdir}"

INITSCRIPT_NAME = "wspush"
INITSCRIPT_PARAMS = "defaults 90 10"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system wspush"
USERADD_PARAM:${PN} = "--system --no-create-home --home-dir /nonexistent \
    --shell /bin/false --gid wspush wspush"
