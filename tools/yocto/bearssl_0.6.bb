# SPDX-License-Identifier: MIT

SUMMARY = "Small TLS library in C"
HOMEPAGE = "https://bearssl.org/"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

SRC_URI = "https://bearssl.org/bearssl-${PV}.tar.gz"
SRC_URI[sha256sum] = "6705bba1714961b41a728dfc5debbe348d2966c117649392f8c8139efc83ff14"

# The static library alone: nothing promises that another version of the
# shared one has the same structs.
do_compile() {
    oe_runmake lib CC="${CC}" CFLAGS="${CFLAGS} -fPIC" AR="${AR}" LD="${CC}"
}

do_install() {
    install -d ${D}${includedir} ${D}${libdir}
    install -m 0644 ${S}/inc/*.h ${D}${includedir}/
    install -m 0644 ${S}/build/libbearssl.a ${D}${libdir}/
}
